"""One request's way, with fakes for workers, clients and the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

import pytest

from router.core.affinity import LastWorkers
from router.core.attempt import AttemptFailed, CannotConnect, ReplyTooLarge, WorkerDied, WorkerSilent
from router.core.errors import ModelNotFound, NoWorkerAvailable, Overloaded, RouterError, WorkerError, WorkerTimeout
from router.core.facts import Facts
from router.core.fingerprint import fingerprint
from router.core.fleet import Fleet, FleetRules, Member
from router.core.health import HealthRules, State
from router.core.prefix_index import PrefixIndex
from router.core.record import Record
from router.core.reply import Reply, StreamEnd
from router.core.request import NO_TENANT, Request, Route, SessionKey
from router.core.worker import WorkerAddress
from router.dispatch import Client, Dispatcher, DispatchSettings
from router.policies.base import Ranking
from router.wire.sse import EventWatch

PROMPT = b"p" * 8192
USAGE = b'{"usage":{"prompt_tokens":2048,"completion_tokens":600,"prompt_tokens_details":{"cached_tokens":1024}}}'
OK = Reply(200, {}, USAGE, is_stream=False)
STREAM = Reply(200, {}, b"", is_stream=True)

Answer = Reply | AttemptFailed | asyncio.Event


class InOrder:
    """Ranks by position, so that a test can say who comes next."""

    name = "in_order"
    reasons = frozenset({"first"})

    def __init__(self) -> None:
        self.facts: list[Facts] = []

    def rank(self, facts: Facts) -> Ranking:
        self.facts.append(facts)
        return Ranking(list(facts.eligible), "first")


class FakeExchange:
    def __init__(self, answer: Answer, end: StreamEnd | asyncio.Event, closed: list[str], name: str) -> None:
        self._answer = answer
        self._end = end
        self._closed = closed
        self._name = name

    def __enter__(self) -> FakeExchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.append(self._name)

    async def ask(self, request: Request, watch: EventWatch | None) -> Reply:
        if isinstance(self._answer, asyncio.Event):
            await self._answer.wait()
        if isinstance(self._answer, AttemptFailed):
            raise self._answer
        assert isinstance(self._answer, Reply)
        return self._answer

    async def relay(self, client: Client, record: Record) -> StreamEnd:
        if isinstance(self._end, asyncio.Event):
            await self._end.wait()
        assert isinstance(self._end, StreamEnd)
        return self._end


class FakeUpstream:
    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.end: StreamEnd | asyncio.Event = StreamEnd.DONE
        self.asked: list[str] = []
        self.closed: list[str] = []

    def exchange(self, worker: WorkerAddress) -> FakeExchange:
        self.asked.append(worker.host)
        return FakeExchange(self.answers.get(worker.host, OK), self.end, self.closed, worker.host)


class FakeClient:
    is_chunked = True

    def __init__(self) -> None:
        self.answered: list[Reply] = []
        self.broken: list[RouterError] = []
        self.hold: asyncio.Event | None = None

    async def answer(self, reply: Reply, record: Record) -> None:
        if self.hold is not None:
            await self.hold.wait()
        self.answered.append(reply)

    def stream_head(self, reply: Reply, record: Record) -> bytes:
        return b""

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return False

    def is_full(self) -> bool:
        return False

    async def drained(self) -> bool:
        return True

    def break_off(self, error: RouterError) -> None:
        self.broken.append(error)


class House:
    """A dispatcher with three workers, a, b and c, that are up and serve ``m``."""

    def __init__(self, hosts: str = "abc", max_attempts: int = 5, min_retries: int = 3) -> None:
        self.index = PrefixIndex(10_000, 1_000)
        rules = FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000)
        self.fleet = Fleet(rules, self.index)
        self.fleet.set_members([WorkerAddress("http", host, 80) for host in hosts])
        for member in self.fleet.members():
            self.fleet.set_models(member, {"m": {"id": "m"}})
            if member.health.on_probe_answered(0.0):
                self.fleet.on_health_changed(member)
        self.upstream = FakeUpstream()
        self.policy = InOrder()
        self.records: list[Record] = []
        self.last_workers = LastWorkers(10)
        self.now = 100.0
        self.dispatcher = Dispatcher(
            DispatchSettings(max_attempts, 0.2, min_retries),
            self.fleet,
            self.index,
            self.last_workers,
            self.policy,
            self.upstream,
            self.records.append,
            lambda: self.now,
        )
        self.client = FakeClient()

    async def send(self, request: Request | None = None) -> Record:
        await self.dispatcher.dispatch(request or make_request(), self.client, self.now)
        return self.records[-1]

    def member(self, host: str) -> Member:
        return next(member for member in self.fleet.members() if member.address.host == host)

    def states(self) -> list[str]:
        return [member.health.state.value for member in self.fleet.members()]

    def assert_nothing_is_held(self) -> None:
        assert sum(self.fleet.in_flight) == 0
        assert sum(self.fleet.queued_prefill_tokens) == 0
        assert not any(member.leases for member in self.fleet.members())
        assert self.dispatcher.budget.live == self.dispatcher.budget.retrying == 0
        assert self.upstream.asked == self.upstream.closed


def make_request(*, model: str = "m", stream: bool = False, session: int | None = None) -> Request:
    return Request(
        route=Route.CHAT,
        model=model,
        stream=stream,
        body=b"{}",
        fingerprint=fingerprint([PROMPT], model=model),
        anchor=7,
        earlier_bytes=4096,
        session=None if session is None else SessionKey(session),
        tenant=NO_TENANT,
        hides_usage=False,
        request_id="r-1",
    )


async def test_the_first_of_the_ranking_answers() -> None:
    house = House()
    record = await house.send()
    assert house.upstream.asked == ["a"]
    assert house.client.answered == [OK]
    assert (record.status, record.outcome, record.attempts, record.retries) == (200, "ok", 1, [])
    assert (record.policy, record.reason, record.worker) == ("in_order", "first", house.member("a").name)
    house.assert_nothing_is_held()


@pytest.mark.parametrize("death", [WorkerDied("x"), CannotConnect("x")])
async def test_a_death_before_the_first_byte_is_invisible_and_outside_the_budget(death: AttemptFailed) -> None:
    house = House(min_retries=0)
    house.upstream.answers = {"a": death, "b": death}
    record = await house.send()
    assert house.upstream.asked == ["a", "b", "c"]
    assert house.client.answered == [OK]
    assert record.retries == [death.cause, death.cause]
    assert house.member("a").health.state is State.EJECTED
    house.assert_nothing_is_held()


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_an_error_answer_goes_to_the_next_worker(status: int) -> None:
    house = House()
    house.upstream.answers["a"] = Reply(status, {}, b"secret", is_stream=False)
    record = await house.send()
    assert house.upstream.asked == ["a", "b"]
    assert record.retries == ["error"]
    assert house.member("a").health.failures_in_a_row == 1
    house.assert_nothing_is_held()


async def test_answered_errors_are_retried_within_the_budget_only() -> None:
    house = House(min_retries=0)
    house.upstream.answers["a"] = Reply(500, {}, b"", is_stream=False)
    with pytest.raises(WorkerError):
        await house.send()
    assert house.upstream.asked == ["a"]
    house.assert_nothing_is_held()


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_worker_is_passed_over_and_stays_well(status: int) -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("ab", Reply(status, {b"retry-after": b"9"}, b"", is_stream=False))
    await house.send()
    assert house.upstream.asked == ["a", "b", "c"]
    assert all(member.health.state is State.UP for member in house.fleet.members())


async def test_when_all_are_busy_the_client_is_told_when_to_come_back() -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("abc", Reply(503, {b"retry-after": b"9"}, b"", is_stream=False))
    with pytest.raises(Overloaded) as raised:
        await house.send()
    assert raised.value.retry_after_s == 9
    house.assert_nothing_is_held()


@pytest.mark.parametrize(("failure", "error"), [(WorkerSilent("x"), WorkerTimeout), (ReplyTooLarge("x"), WorkerError)])
async def test_the_last_failure_names_the_error(failure: AttemptFailed, error: type[RouterError]) -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("abc", failure)
    with pytest.raises(error):
        await house.send()
    assert house.records[-1].status == error.status
    house.assert_nothing_is_held()


async def test_a_fleet_that_died_is_no_worker_available() -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("abc", WorkerDied("x"))
    with pytest.raises(NoWorkerAvailable) as raised:
        await house.send()
    assert raised.value.retry_after_s == 1


async def test_ejected_workers_are_tried_when_no_other_is_left_and_a_success_brings_them_back() -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("abc", WorkerDied("x"))
    with pytest.raises(NoWorkerAvailable):
        await house.send()
    assert house.states() == ["ejected", "ejected", "ejected"]
    house.upstream.answers = {}
    await house.send()
    assert house.states() == ["up", "ejected", "ejected"]


async def test_attempts_are_bounded() -> None:
    house = House("abcdef", max_attempts=4)
    house.upstream.answers = dict.fromkeys("abcdef", WorkerDied("x"))
    with pytest.raises(WorkerError):
        await house.send()
    assert len(house.upstream.asked) == 4


async def test_a_clients_mistake_is_its_own_and_says_nothing_of_the_worker() -> None:
    house = House()
    wrong = Reply(400, {}, b'{"error":{}}', is_stream=False)
    house.upstream.answers["a"] = wrong
    record = await house.send()
    assert house.client.answered == [wrong]
    assert (record.status, record.outcome) == (400, "client_error")
    assert house.member("a").health.failures_in_a_row == 0


async def test_an_unknown_model_asks_nobody() -> None:
    house = House()
    with pytest.raises(ModelNotFound):
        await house.send(make_request(model="nobody"))
    assert house.upstream.asked == []
    assert house.records[-1].status == 404
    house.assert_nothing_is_held()


async def test_a_stream_that_breaks_is_broken_off_and_its_worker_ejected() -> None:
    house = House()
    house.upstream.answers["a"] = STREAM
    house.upstream.end = StreamEnd.FAILED
    record = await house.send(make_request(stream=True))
    assert [error.code for error in house.client.broken] == ["worker_error"]
    assert record.outcome == "broken"
    assert house.member("a").health.state is State.EJECTED
    assert house.upstream.asked == ["a"]
    house.assert_nothing_is_held()


def hold_ask(house: House, event: asyncio.Event) -> None:
    house.upstream.answers["a"] = event


def hold_relay(house: House, event: asyncio.Event) -> None:
    house.upstream.answers["a"] = STREAM
    house.upstream.end = event


def hold_answer(house: House, event: asyncio.Event) -> None:
    house.client.hold = event


@pytest.mark.parametrize("hold", [hold_ask, hold_relay, hold_answer])
async def test_a_client_that_leaves_leaves_no_lease(hold: Callable[[House, asyncio.Event], None]) -> None:
    house = House()
    hold(house, asyncio.Event())
    task = asyncio.create_task(house.send(make_request(stream=hold is not hold_answer)))
    while sum(house.fleet.in_flight) == 0:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [record.outcome for record in house.records] == ["client_gone"]
    house.assert_nothing_is_held()


async def test_the_index_learns_where_a_prompt_went() -> None:
    house = House()
    await house.send()
    matches = house.index.match(make_request().fingerprint, 2048.0)
    assert matches.tokens(house.member("a").position) == pytest.approx(2048.0)
    record = await house.send()
    assert record.predicted_cached_tokens > 0
    assert (record.prompt_tokens, record.actual_cached_tokens) == (2048, 1024)


async def test_the_index_forgets_what_a_failed_worker_never_computed() -> None:
    house = House()
    house.upstream.answers["a"] = Reply(500, {}, b"", is_stream=False)
    await house.send()
    assert house.index.match(make_request().fingerprint, 2048.0).tokens(house.member("a").position) == 0


async def test_the_policy_is_told_where_the_sessions_last_turn_went() -> None:
    house = House()
    position = house.member("a").position
    for hosts in ("abc", "abc", "b"):
        house.fleet.set_members([WorkerAddress("http", host, 80) for host in hosts])
        await house.send(make_request(session=5))
    assert [facts.session_worker for facts in house.policy.facts] == [None, position, None]


async def test_bytes_per_token_follow_the_workers_counts() -> None:
    house = House()
    before = house.fleet.bytes_per_token("m")
    house.upstream.answers["a"] = Reply(200, {}, b'{"usage":{"prompt_tokens":8192}}', is_stream=False)
    await house.send()
    assert 1.0 < house.fleet.bytes_per_token("m") < before
