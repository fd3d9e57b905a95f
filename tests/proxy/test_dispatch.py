"""One request's way, with fakes for workers, clients and the clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType

import msgspec
import pytest

from router.config.routing import AdmissionConfig, ResumptionConfig, RetriesConfig
from router.core.errors import (
    ModelNotFound,
    ModelUnavailable,
    NoWorkerAvailable,
    Overloaded,
    RouterError,
    WorkerError,
    WorkersBusy,
    WorkerTimeout,
)
from router.core.fleet.affinity import LastWorkers
from router.core.fleet.facts import Facts
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules, WorkerState
from router.core.fleet.member import Member
from router.core.fleet.rules import FleetRules
from router.core.index.fingerprint import BLOCK_BYTES, Fingerprint, fingerprint
from router.core.index.prefix_index import PrefixIndex
from router.core.request.attempt import (
    AttemptFailed,
    CannotConnect,
    ReplyTooLarge,
    WorkerDied,
    WorkerErred,
    WorkerSilent,
    WorkerSlow,
)
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd
from router.core.request.request import NO_TENANT, Request, SessionKey
from router.core.request.routes import Route
from router.core.tenants.memory import REPLY, Holding, MemoryFull
from router.core.worker import WorkerAddress
from router.policies.base import Ranking
from router.proxy.admission import Admission
from router.proxy.dispatch import Dispatcher
from router.proxy.ports import Client
from router.proxy.selection import WorkerSelector
from router.wire.sse import Filter, StreamFilter
from router.wire.usage import Usage
from tests.upstream.wires import a_holding

PROMPT = b"p" * 8192
USAGE = b'{"usage":{"prompt_tokens":2048,"completion_tokens":600,"prompt_tokens_details":{"cached_tokens":1024}}}'
OK = Reply(200, {}, USAGE, is_stream=False)
STREAM = Reply(200, {}, b"", is_stream=True)
ERROR = Reply(500, {}, b"", is_stream=False)

OPEN = AdmissionConfig(
    max_worker_requests=0,
    max_worker_prefill_tokens=0,
    max_queued=100,
    max_queued_bytes=1 << 20,
    max_wait_s=0,
    no_worker_wait_s=0,
    warm_wait_s=0,
)
"""Nobody waits."""

Answer = Reply | AttemptFailed | MemoryFull | asyncio.Event | asyncio.Future[Reply]


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
    """``end`` and ``usage`` are a stream's."""

    def __init__(
        self,
        answer: Answer,
        end: StreamEnd | asyncio.Event,
        usage: Usage | None,
        closed: list[str],
        name: str,
        waits: list[float | None],
        error: bytes = b"",
    ) -> None:
        self.waits = waits
        self._error = error
        self._answer = answer
        self._end = end
        self._usage = usage
        self._closed = closed
        self._name = name

    def __enter__(self) -> FakeExchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.append(self._name)

    async def post(self, path: str, body: bytes, answer_s: float) -> Reply:
        raise AssertionError(path)

    def require_unbroken(self) -> None: ...

    async def ask(
        self, request: Request, watch: Filter | None, memory: Holding, first_event_s: float | None = None
    ) -> Reply:
        self.waits.append(first_event_s)
        if isinstance(watch, StreamFilter):
            watch.usage = self._usage
            watch.error = self._error
        if isinstance(self._answer, asyncio.Event):
            await self._answer.wait()
        if isinstance(self._answer, asyncio.Future):
            return await self._answer
        if isinstance(self._answer, AttemptFailed | MemoryFull):
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
        self.usage: Usage | None = None
        self.answer_of: Callable[[str], Answer] | None = None
        """In the place of ``answers``, for those that change."""
        self.error = b""
        """The event by which a worker ends its stream."""
        self.asked: list[str] = []
        self.closed: list[str] = []
        self.waits: list[float | None] = []
        """For each request, how long its first event may take."""

    def exchange(self, worker: WorkerAddress) -> FakeExchange:
        self.asked.append(worker.host)
        answer = self.answers.get(worker.host, OK) if self.answer_of is None else self.answer_of(worker.host)
        return FakeExchange(answer, self.end, self.usage, self.closed, worker.host, self.waits, self.error)


class FakeClient:
    is_chunked = True

    def __init__(self) -> None:
        self.answered: list[Reply] = []
        self.broken: list[RouterError] = []
        self.passed_on: list[bytes] = []
        """Error events of workers."""
        self.hold: asyncio.Event | None = None
        self.has_been_asked = False
        self.memory = a_holding()

    async def answer(self, reply: Reply, record: Record) -> None:
        self.has_been_asked = True
        if self.hold is not None:
            await self.hold.wait()
        self.answered.append(reply)

    def stream_head(self, reply: Reply, record: Record) -> bytes:
        return b""

    def write(self, data: bytes) -> None: ...

    def write_last(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return False

    def is_full(self) -> bool:
        return False

    async def drained(self) -> bool:
        return True

    def end_stream(self, events: bytes) -> None:
        raise AssertionError(events)

    def break_off(self, error: RouterError) -> None:
        self.broken.append(error)

    def break_off_with(self, event: bytes) -> None:
        self.passed_on.append(event)


class House:
    """A dispatcher with three workers, a, b and c, that are up and serve ``m``."""

    def __init__(
        self,
        hosts: str = "abc",
        max_attempts: int = 5,
        min_retries: int = 3,
        admission: AdmissionConfig | None = None,
        max_deaths: int = 3,
    ) -> None:
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
        self.pauses: list[float] = []
        self.admission = Admission(admission or OPEN, self.fleet, lambda: self.now, lambda: self.now, self.pause)
        self.dispatcher = Dispatcher(
            RetriesConfig(max_attempts=max_attempts, max_deaths=max_deaths, min_budget=min_retries),
            ResumptionConfig(max_attempts=3, wait_s=1.0, max_total_kept_bytes=1 << 24),
            WorkerSelector(self.fleet, self.index, self.last_workers, self.policy, lambda: self.now, 30.0),
            self.upstream,
            self.records.append,
            lambda: self.now,
            self.admission,
            look_for_models=self.look,
        )
        self.client = FakeClient()
        self.looks = 0
        self.found: dict[str, set[str]] = {}
        """By host, models that its worker turns out to list when it is looked at anew."""

    async def send(self, request: Request | None = None) -> Record:
        await self.dispatcher.dispatch(request or make_request(), self.client, self.now)
        return self.records[-1]

    async def look(self) -> None:
        self.looks += 1
        self.now += 0.25
        for host, models in self.found.items():
            self.fleet.set_models(self.member(host), {model: {"id": model} for model in models})

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def member(self, host: str) -> Member:
        return next(member for member in self.fleet.members() if member.address.host == host)

    def states(self) -> list[str]:
        return [member.health.state.value for member in self.fleet.members()]

    def assert_nothing_is_held(self) -> None:
        assert sum(self.fleet.figures.in_flight) == 0
        assert sum(self.fleet.figures.queued_prefill_tokens) == 0
        assert not any(member.leases for member in self.fleet.members())
        assert self.dispatcher.budget.retrying == 0
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
    assert [(each.worker, each.failure) for each in record.tried] == [
        (house.member(host).name, failure) for host, failure in zip("abc", [death.cause, death.cause, ""], strict=True)
    ]
    assert record.first_choice == house.member("a").name
    assert house.member("a").health.state is WorkerState.EJECTED
    house.assert_nothing_is_held()


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_an_error_answer_goes_to_the_next_worker(status: int) -> None:
    house = House()
    house.upstream.answers["a"] = Reply(status, {}, b"secret", is_stream=False)
    record = await house.send()
    assert house.upstream.asked == ["a", "b"]
    assert record.retries == ["error"]
    assert house.member("a").health.failed_requests == 1
    house.assert_nothing_is_held()


@pytest.mark.parametrize(
    ("failure", "cause"),
    [(ERROR, "error"), (WorkerSilent("x"), "timeout"), (WorkerDied("x"), "died")],
)
async def test_what_no_attempt_follows_is_no_retry(failure: Answer, cause: str) -> None:
    house = House("ab")
    house.upstream.answers = dict.fromkeys("ab", failure)
    with pytest.raises(RouterError):
        await house.send()
    assert house.records[-1].attempts == 2
    assert house.records[-1].retries == [cause]
    assert [each.failure for each in house.records[-1].tried] == [cause, cause]


async def test_the_last_worker_of_a_ranking_takes_nothing_from_the_budget() -> None:
    """Where one worker is all there is, its failures must not use up what other requests may need."""
    house = House("a")
    house.upstream.answers["a"] = Reply(500, {}, b"", is_stream=False)
    house.dispatcher.budget.take = lambda _now: pytest.fail("no retry follows")  # type: ignore[method-assign,assignment]
    with pytest.raises(WorkerError):
        await house.send()


async def test_a_retry_is_under_way_until_its_request_ends() -> None:
    house = House()
    house.upstream.answers = {"a": Reply(500, {}, b"", is_stream=False), "b": asyncio.Event()}
    task = asyncio.create_task(house.send())
    while house.upstream.asked != ["a", "b"]:
        await asyncio.sleep(0)
    assert house.dispatcher.budget.retrying == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    house.assert_nothing_is_held()


async def test_a_worker_that_left_while_another_was_tried_is_passed_over() -> None:
    house = House()
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    house.upstream.answers["a"] = answer
    task = asyncio.create_task(house.send())
    while not house.upstream.asked:
        await asyncio.sleep(0)
    house.fleet.set_members([WorkerAddress("http", host, 80) for host in "acx"])
    assert house.fleet.figures.names[1] == house.member("x").name
    answer.set_exception(WorkerDied("x"))
    record = await task
    assert house.upstream.asked == ["a", "c"]
    assert record.retries == ["died"]
    house.assert_nothing_is_held()


async def test_when_all_others_left_meanwhile_no_worker_is_available() -> None:
    house = House("ab")
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    house.upstream.answers["a"] = answer
    task = asyncio.create_task(house.send())
    while not house.upstream.asked:
        await asyncio.sleep(0)
    house.fleet.set_members([])
    answer.set_exception(WorkerDied("x"))
    with pytest.raises(ModelUnavailable) as raised:
        await task
    assert raised.value.retry_after_s == 2
    assert house.records[-1].outcome == "model_unavailable"
    house.assert_nothing_is_held()


async def test_an_answer_that_is_too_large_is_not_asked_of_another() -> None:
    house = House()
    house.upstream.answers["a"] = ReplyTooLarge("x")
    with pytest.raises(WorkerError, match="too large"):
        await house.send()
    assert house.upstream.asked == ["a"]
    assert house.member("a").health.state is WorkerState.UP
    assert house.index.match(make_request().fingerprint, 2048.0).tokens(house.member("a").position) > 0
    house.assert_nothing_is_held()


async def test_an_answer_for_which_there_is_no_memory_is_nobodys_failure_and_not_asked_of_another() -> None:
    house = House()
    house.upstream.answers["a"] = MemoryFull("full", retry_after_s=1)
    with pytest.raises(MemoryFull):
        await house.send()
    assert house.upstream.asked == ["a"]
    assert house.member("a").health.state is WorkerState.UP
    record = house.records[-1]
    assert (record.status, record.outcome, record.retries) == (503, "overloaded", [])
    house.assert_nothing_is_held()


async def test_what_was_held_of_an_attempt_that_failed_is_given_back() -> None:
    house = House()
    house.upstream.answers["a"] = Reply(500, {}, b"", is_stream=False)
    house.client.memory.grow(REPLY, 1000)
    await house.send()
    assert house.upstream.asked == ["a", "b"]
    assert house.client.memory[REPLY] == 0


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
    assert all(member.health.state is WorkerState.UP for member in house.fleet.members())


async def test_when_all_are_busy_the_client_is_told_when_to_come_back() -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("abc", Reply(503, {b"retry-after": b"9"}, b"", is_stream=False))
    with pytest.raises(Overloaded) as raised:
        await house.send()
    assert raised.value.retry_after_s == 9
    house.assert_nothing_is_held()


@pytest.mark.parametrize(("failure", "error"), [(WorkerSilent("x"), WorkerTimeout), (ERROR, WorkerError)])
async def test_the_last_failure_names_the_error(failure: Answer, error: type[RouterError]) -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("abc", failure)
    with pytest.raises(error):
        await house.send()
    assert house.records[-1].status == error.status
    house.assert_nothing_is_held()


async def test_a_fleet_that_died_is_no_worker_available() -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("abc", CannotConnect("x"))
    with pytest.raises(NoWorkerAvailable) as raised:
        await house.send()
    assert raised.value.retry_after_s == 1


async def test_ejected_workers_are_tried_when_no_other_is_left_and_a_success_brings_them_back() -> None:
    house = House()
    house.upstream.answers = dict.fromkeys("abc", CannotConnect("x"))
    with pytest.raises(NoWorkerAvailable):
        await house.send()
    assert house.states() == ["ejected", "ejected", "ejected"]
    house.upstream.answers = {}
    await house.send()
    assert house.states() == ["up", "ejected", "ejected"]


async def test_attempts_are_bounded() -> None:
    house = House("abcdef", max_attempts=4)
    house.upstream.answers = dict.fromkeys("abcdef", CannotConnect("x"))
    with pytest.raises(WorkerError):
        await house.send()
    assert len(house.upstream.asked) == 4


async def test_a_clients_mistake_neither_hides_failures_nor_brings_a_worker_back() -> None:
    """Wrong requests are refused before the engine, which may be dead behind the one that answers."""
    house = House("a")
    member = house.member("a")
    for answer in (ERROR, Reply(404, {}, b"", is_stream=False), ERROR):
        house.upstream.answers["a"] = answer
        with contextlib.suppress(WorkerError):
            await house.send()
    assert member.health.failed_requests == 2
    member.health.on_death(house.now)
    house.fleet.on_health_changed(member)
    house.upstream.answers["a"] = Reply(400, {}, b"", is_stream=False)
    await house.send()
    assert member.health.state is WorkerState.EJECTED


async def test_a_clients_mistake_is_its_own_and_says_nothing_of_the_worker() -> None:
    house = House()
    wrong = Reply(400, {}, b'{"error":{}}', is_stream=False)
    house.upstream.answers["a"] = wrong
    record = await house.send()
    assert house.client.answered == [wrong]
    assert (record.status, record.outcome) == (400, "client_error")
    assert house.member("a").health.failed_requests == 0


async def test_an_unknown_model_asks_nobody() -> None:
    house = House()
    with pytest.raises(ModelNotFound):
        await house.send(make_request(model="nobody"))
    assert house.upstream.asked == []
    assert house.records[-1].status == 404
    house.assert_nothing_is_held()


async def test_a_worker_that_is_at_work_for_too_long_is_not_ill() -> None:
    house = House("ab")
    house.upstream.answers = dict.fromkeys("ab", WorkerSlow("x"))
    for _ in range(3):
        with pytest.raises(WorkerTimeout):
            await house.send()
    house.upstream.answers = {"a": STREAM}
    house.upstream.end = StreamEnd.SLOW
    await house.send(make_request(stream=True))
    assert house.records[-1].outcome == "slow"
    assert house.states() == ["up", "up"]
    assert [member.health.failed_requests for member in house.fleet.members()] == [0, 0]
    house.assert_nothing_is_held()


async def test_a_stream_that_breaks_is_broken_off_and_its_worker_ejected() -> None:
    house = House()
    house.upstream.answers["a"] = STREAM
    house.upstream.end = StreamEnd.DIED
    record = await house.send(make_request(stream=True))
    assert [error.code for error in house.client.broken] == ["worker_error"]
    assert record.outcome == "broken"
    assert house.member("a").health.state is WorkerState.EJECTED
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
    while sum(house.fleet.figures.in_flight) == 0:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [record.outcome for record in house.records] == ["client_gone"]
    assert house.records[0].status == (499 if hold is hold_ask else 200)
    house.assert_nothing_is_held()


async def test_refusals_take_nothing_from_the_index_that_the_worker_holds() -> None:
    house = House()
    known = Fingerprint([1, 2, 3], 3 * BLOCK_BYTES)
    house.index.record(house.member("a").position, known)
    asked = msgspec.structs.replace(make_request(), fingerprint=Fingerprint([1, 2, 3], 3 * BLOCK_BYTES + 100))
    house.upstream.answers["a"] = Reply(429, {}, b"", is_stream=False)
    for _ in range(12):
        await house.send(asked)
    assert house.index.match(known, 3.0).tokens(house.member("a").position) == 3.0


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
    before = house.fleet.learning.bytes_per_token("m")
    house.upstream.answers["a"] = Reply(200, {}, b'{"usage":{"prompt_tokens":8192}}', is_stream=False)
    await house.send()
    assert 1.0 < house.fleet.learning.bytes_per_token("m") < before


async def test_a_stream_counts_until_its_end_and_its_prefill_until_its_first_event() -> None:
    house = House("a")
    end = asyncio.Event()
    house.upstream.answers["a"], house.upstream.end = STREAM, end
    task = asyncio.create_task(house.send(make_request(stream=True)))
    while not any(lease.answered for lease in house.member("a").leases):
        await asyncio.sleep(0)
    assert house.fleet.figures.in_flight == [1]
    assert house.fleet.figures.queued_prefill_tokens == [0.0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    house.assert_nothing_is_held()


async def test_a_reply_that_is_not_streamed_counts_until_the_client_has_it() -> None:
    house = House("a")
    house.client.hold = asyncio.Event()
    task = asyncio.create_task(house.send())
    while not house.client.has_been_asked:
        await asyncio.sleep(0)
    assert house.fleet.figures.in_flight == [1]
    house.client.hold.set()
    await task
    house.assert_nothing_is_held()


@pytest.mark.parametrize("end", [StreamEnd.DONE, StreamEnd.DIED, StreamEnd.CLIENT_GONE, StreamEnd.CLIENT_STALLED])
async def test_how_a_stream_ended_is_recorded_and_only_a_whole_one_teaches(end: StreamEnd) -> None:
    house = House("a")
    house.upstream.answers["a"], house.upstream.end = STREAM, end
    house.upstream.usage = Usage(8192, 1024, 600)
    before = house.fleet.learning.bytes_per_token("m")
    record = await house.send(make_request(stream=True))
    assert record.outcome == end.value
    assert record.status == 200
    has_learnt = end is StreamEnd.DONE
    assert (record.actual_cached_tokens == 1024) is has_learnt
    assert (house.fleet.learning.bytes_per_token("m") < before) is has_learnt
    house.assert_nothing_is_held()


async def test_a_client_that_leaves_is_nobodys_failure() -> None:
    house = House("a")
    house.upstream.answers["a"], house.upstream.end = STREAM, StreamEnd.CLIENT_GONE
    for _ in range(10):
        await house.send(make_request(stream=True))
    assert house.states() == ["up"]
    assert house.client.broken == []


async def test_a_streams_first_token_teaches_the_workers_rate() -> None:
    house = House("a")
    house.upstream.usage = Usage(2048, 0, 5)
    before = house.fleet.figures.seconds_per_token[0]
    for _ in range(50):
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        house.upstream.answers["a"] = answer
        task = asyncio.create_task(house.send(make_request(stream=True)))
        while house.upstream.asked == house.upstream.closed:
            await asyncio.sleep(0)
        house.now += 2.048  # 1,000 tokens a second
        answer.set_result(STREAM)
        await task
    assert before == pytest.approx(1e-4)
    assert house.fleet.figures.seconds_per_token[0] == pytest.approx(1e-3, rel=0.1)


async def test_an_unstreamed_reply_teaches_no_rate_since_its_first_token_was_not_seen() -> None:
    house = House("a")
    before = house.fleet.figures.seconds_per_token[0]
    await house.send()
    assert house.fleet.figures.seconds_per_token[0] == before


async def test_a_reply_takes_room_in_the_workers_cache() -> None:
    house = House("a")
    reply = b'{"usage":{"prompt_tokens":2048,"completion_tokens":600}}'
    house.upstream.answers["a"] = Reply(200, {}, reply, is_stream=False)
    await house.send()
    assert house.index.blocks(0) == 8 + 3


async def test_cached_tokens_that_the_worker_does_not_tell_are_unknown_and_not_zero() -> None:
    house = House("a")
    house.upstream.answers["a"] = Reply(200, {}, b'{"usage":{"prompt_tokens":2048}}', is_stream=False)
    record = await house.send()
    assert (record.prompt_tokens, record.actual_cached_tokens) == (2048, None)


async def test_what_a_failed_worker_held_before_is_still_believed() -> None:
    house = House("a")
    await house.send()
    house.upstream.answers["a"] = Reply(503, {}, b"", is_stream=False)
    with pytest.raises(Overloaded):
        await house.send()
    assert house.index.match(make_request().fingerprint, 2048.0).tokens(0) == pytest.approx(2048.0)


async def teach(house: House, cached: int) -> None:
    """Two requests with the same long prompt: the second is predicted to be cached, and finds ``cached`` tokens."""
    usage = b'{"usage":{"prompt_tokens":2048,"prompt_tokens_details":{"cached_tokens":%d}}}'
    for tokens in (0, cached):
        house.upstream.answers["a"] = Reply(200, {}, usage % tokens, is_stream=False)
        await house.send()


@pytest.mark.parametrize(("cached", "still_held"), [(2000, True), (0, False)])
async def test_a_worker_that_evicted_a_prompt_evicted_what_was_used_before_it(cached: int, still_held: bool) -> None:
    house = House("a")
    old = fingerprint([b"o" * 4096], model="m")
    house.index.record(0, old)
    await teach(house, cached)
    assert (house.index.match(old, 1024.0).tokens(0) > 0) is still_held


async def test_a_wrong_guess_of_a_prompts_tokens_is_not_taken_for_an_eviction() -> None:
    """Where a token has more bytes than was thought, fewer tokens are cached than was predicted, and all of them are."""
    house = House("a")
    old = fingerprint([b"o" * 4096], model="m")
    house.index.record(0, old)
    house.fleet.learning.learn_bytes_per_token = lambda *_seen: None  # type: ignore[method-assign]
    usage = b'{"usage":{"prompt_tokens":256,"prompt_tokens_details":{"cached_tokens":%d}}}'
    for tokens in (0, 240):
        house.upstream.answers["a"] = Reply(200, {}, usage % tokens, is_stream=False)
        await house.send()
    assert house.index.match(old, 1024.0).tokens(0) > 0


async def test_a_worker_that_left_teaches_nothing_about_the_one_in_its_place() -> None:
    house = House("a")
    await house.send()
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    house.upstream.answers["a"] = answer
    task = asyncio.create_task(house.send())
    while house.upstream.asked == house.upstream.closed:
        await asyncio.sleep(0)
    house.fleet.set_members([])
    answer.set_result(Reply(200, {}, b'{"usage":{"prompt_tokens":2048,"completion_tokens":600}}', is_stream=False))
    record = await task
    assert record.prompt_tokens == 2048
    house.fleet.set_members([WorkerAddress("http", "x", 80)])
    assert house.index.blocks(0) == 0


async def test_a_session_without_a_turn_is_not_remembered_and_a_failed_one_keeps_its_worker() -> None:
    house = House("ab")
    await house.send()
    assert len(house.last_workers) == 0
    await house.send(make_request(session=5))
    house.upstream.answers = dict.fromkeys("ab", ERROR)
    with pytest.raises(WorkerError):
        await house.send(make_request(session=5))
    assert house.last_workers.get(SessionKey(5)) == house.member("a").name


@pytest.mark.parametrize(
    ("given", "told"), [(b"", 1), (b"0", 1), (b"7", 7), (b"99999", 3600), (b"999999", 1), (b"soon", 1), (b"-5", 1)]
)
async def test_a_worker_may_say_when_to_come_back_within_reason(given: bytes, told: int) -> None:
    house = House("a")
    house.upstream.answers["a"] = Reply(429, {b"retry-after": given}, b"", is_stream=False)
    with pytest.raises(Overloaded) as raised:
        await house.send()
    assert raised.value.retry_after_s == told


@pytest.mark.parametrize("answer", [ERROR, WorkerDied("w-secret"), WorkerSilent("x"), ReplyTooLarge("x")])
async def test_no_error_names_a_worker_or_quotes_it(answer: Answer) -> None:
    house = House("a")
    house.upstream.answers["a"] = answer
    with pytest.raises(RouterError) as raised:
        await house.send()
    assert "secret" not in raised.value.message
    assert house.member("a").address.host not in raised.value.message.split()


async def test_times_in_the_record_are_in_their_order() -> None:
    house = House("a")
    ticks = iter(range(100, 200))
    house.dispatcher._clock = lambda: float(next(ticks))
    record = await house.send()
    times = [record.started_at, record.decided_at, record.first_byte_at, record.ended_at]
    assert times == sorted(times)
    assert 0.0 not in times


async def test_one_error_event_in_a_stream_breaks_it_off_but_does_not_eject_its_worker() -> None:
    house = House()
    house.upstream.answers["a"] = STREAM
    house.upstream.end = StreamEnd.ERRED
    await house.send(make_request(stream=True))
    assert [error.code for error in house.client.broken] == ["worker_error"]
    assert house.member("a").health.state is WorkerState.UP
    assert house.member("a").health.failed_requests == 1


async def test_when_the_only_one_that_was_up_dies_those_that_were_ejected_are_tried() -> None:
    house = House()
    for host in "bc":
        if house.member(host).health.on_death(house.now):
            house.fleet.on_health_changed(house.member(host))
    house.upstream.answers["a"] = WorkerDied("x")
    house.upstream.answers["b"] = CannotConnect("x")
    record = await house.send()
    assert house.upstream.asked == ["a", "b", "c"]
    assert (record.status, record.retries) == (200, ["died", "connect"])
    house.assert_nothing_is_held()


async def test_only_a_streams_first_event_is_waited_for_no_longer_than_a_prefill_takes() -> None:
    house = House()
    await house.send(make_request(stream=False))
    await house.send(make_request(stream=True))
    whole_s, first_event_s = house.upstream.waits
    assert whole_s is None, (
        "an answer that is not streamed may take as long as any, long prefills and long answers alike"
    )
    assert first_event_s is not None
    assert first_event_s >= 30.0


@pytest.mark.parametrize("answer", [WorkerDied("x"), Reply(500, {}, b"EngineDeadError", is_stream=False)], ids=str)
async def test_a_request_under_which_workers_die_one_after_another_is_given_up(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    house = House("abcdef")
    house.upstream.answers = dict.fromkeys("abcdef", answer)
    with pytest.raises(WorkerError, match="3 workers died") as raised:
        await house.send()
    assert house.upstream.asked == ["a", "b", "c"]
    assert not raised.value.retryable
    record = house.records[-1]
    assert (record.status, record.outcome, record.given_up) == (502, "worker_error", True)
    (told,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert (told.message, told.request_id) == ("request given up", "r-1")  # type: ignore[attr-defined]
    assert told.died == [house.member(host).name for host in "abc"]  # type: ignore[attr-defined]
    house.assert_nothing_is_held()


async def test_deaths_are_counted_over_all_that_a_request_waits_for() -> None:
    """One worker that comes back each time, and dies each time."""
    admission = msgspec.structs.replace(OPEN, no_worker_wait_s=60.0)
    house = House("a", admission=admission)
    house.upstream.answers["a"] = WorkerDied("x")
    task = asyncio.create_task(house.send())
    for poison_guard in (1, 2):
        while len(house.upstream.closed) < poison_guard or not house.admission.queue:
            await asyncio.sleep(0)
        house.now += 5.0
        if house.member("a").health.on_probe_answered(house.now):
            house.fleet.on_health_changed(house.member("a"))
    with pytest.raises(WorkerError, match="3 workers died"):
        await task
    assert house.upstream.asked == ["a", "a", "a"]
    house.assert_nothing_is_held()


async def test_workers_that_cannot_be_reached_did_not_die_of_the_request() -> None:
    house = House("abcde", max_deaths=1)
    house.upstream.answers = dict.fromkeys("abcd", CannotConnect("x"))
    record = await house.send()
    assert (record.status, record.given_up) == (200, False)


async def test_a_stream_that_errs_before_anybody_saw_its_first_event_goes_to_the_next_worker() -> None:
    house = House()
    house.upstream.answers = {"a": WorkerErred("x"), "b": STREAM}
    record = await house.send(make_request(stream=True))
    assert house.upstream.asked == ["a", "b"]
    assert (record.retries, record.outcome) == (["error"], "ok")
    assert house.member("a").health.failed_requests == 1
    house.assert_nothing_is_held()


async def test_a_stream_that_ends_for_the_clients_fault_is_ended_so_and_its_worker_stays_well() -> None:
    house = House()
    house.upstream.answers["a"] = STREAM
    house.upstream.end = StreamEnd.ERRED
    house.upstream.error = b'data: {"error":{"message":"too long","code":400}}\n\n'
    for _ in range(5):
        record = await house.send(make_request(stream=True))
    assert house.client.passed_on == [house.upstream.error] * 5
    assert (record.status, record.outcome, house.client.broken) == (200, "client_error", [])
    assert house.member("a").health.failed_requests == 0
    assert house.states() == ["up", "up", "up"]
    house.assert_nothing_is_held()


# Workers that call themselves busy

PATIENT = msgspec.structs.replace(OPEN, max_wait_s=10.0)


def busy(retry_after: bytes = b"") -> Reply:
    return Reply(503, {b"retry-after": retry_after} if retry_after else {}, b"", is_stream=False)


async def test_a_request_waits_for_busy_workers_and_is_answered_when_one_has_room() -> None:
    house = House("ab", admission=PATIENT)
    calm = iter([busy(), busy(), busy(), OK])
    house.upstream.answer_of = lambda host: next(calm) if host == "b" else busy()
    record = await house.send()
    assert house.client.answered == [OK]
    assert house.pauses == [1.0, 1.0, 2.0]
    assert (record.status, record.queued_s) == (200, 4.0)
    assert house.admission.pausing == 0
    house.assert_nothing_is_held()


async def test_busy_workers_are_waited_for_no_longer_than_for_room_and_asked_ever_more_seldom() -> None:
    house = House("ab", admission=PATIENT)
    house.upstream.answers = dict.fromkeys("ab", busy())
    with pytest.raises(Overloaded):
        await house.send()
    assert house.pauses == [1.0, 1.0, 2.0, 4.0, 2.0]
    assert len(house.upstream.asked) == 2 * 6
    assert house.admission.refusals["too_late"] == 1
    house.assert_nothing_is_held()


async def test_the_wish_of_the_busy_worker_that_wants_to_be_asked_soonest_is_heeded() -> None:
    house = House("abc", admission=PATIENT)
    house.upstream.answers = {"a": busy(b"60"), "b": busy(b"4"), "c": busy(b"50")}
    with pytest.raises(Overloaded) as raised:
        await house.send()
    assert house.pauses == [4.0, 4.0]
    assert raised.value.retry_after_s == 4


async def test_a_wish_beyond_the_longest_wait_is_passed_on_at_once() -> None:
    house = House("a", admission=PATIENT)
    house.upstream.answers["a"] = busy(b"11")
    with pytest.raises(Overloaded) as raised:
        await house.send()
    assert (house.pauses, raised.value.retry_after_s) == ([], 11)


@pytest.mark.parametrize("bound", [{"max_queued": 0}, {"max_queued_bytes": 1}], ids=str)
async def test_no_more_wait_for_busy_workers_than_may_wait_at_all(bound: dict[str, int]) -> None:
    house = House("a", admission=msgspec.structs.replace(PATIENT, **bound))
    house.upstream.answers["a"] = busy()
    with pytest.raises(Overloaded):
        await house.send()
    assert house.pauses == []
    assert house.admission.refusals["queue_full"] == 1


async def test_a_client_that_leaves_while_it_waits_for_busy_workers_leaves_nothing() -> None:
    house = House("a", admission=PATIENT)
    house.upstream.answers["a"] = busy()
    held = asyncio.Event()
    house.admission._sleep = lambda _s: held.wait()
    task = asyncio.create_task(house.send())
    while not house.admission.pausing:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert house.admission.pausing == 0
    assert house.admission._pausing_bytes == 0
    house.assert_nothing_is_held()


def no_model(model: str = "m") -> Reply:
    body = b'{"error":{"message":"The model `%b` does not exist.","type":"NotFoundError","param":"model","code":404}}'
    return Reply(404, {}, body % model.encode(), is_stream=False)


async def test_a_model_that_was_loaded_a_moment_ago_is_found_by_a_look() -> None:
    house = House()
    house.found = {"b": {"m", "new"}}
    record = await house.send(make_request(model="new"))
    assert (house.looks, house.upstream.asked) == (1, ["b"])
    assert record.queued_s == 0.25
    house.assert_nothing_is_held()


async def test_a_model_that_a_look_does_not_find_is_a_404_after_one_look() -> None:
    house = House()
    with pytest.raises(ModelNotFound):
        await house.send(make_request(model="none"))
    assert (house.looks, house.upstream.asked) == (1, [])


async def test_a_worker_that_has_not_got_a_model_of_its_list_is_asked_no_more_and_the_next_one_is() -> None:
    house = House()
    house.upstream.answers["a"] = no_model()
    record = await house.send()
    assert (house.upstream.asked, record.retries, record.status) == (["a", "b"], ["no_model"], 200)
    assert house.member("a").is_list_old
    assert house.member("a").health.state is WorkerState.UP
    await house.send()
    assert house.upstream.asked == ["a", "b", "b"]
    assert house.looks == 0
    house.assert_nothing_is_held()


async def test_a_model_that_every_worker_turns_out_not_to_have_is_unavailable() -> None:
    house = House()
    house.upstream.answer_of = lambda _host: no_model()
    with pytest.raises(ModelUnavailable):
        await house.send()
    assert (house.upstream.asked, house.looks) == (["a", "b", "c"], 1)
    house.assert_nothing_is_held()


async def test_workers_that_list_what_they_refuse_are_asked_twice_and_believed() -> None:
    house = House("ab")
    house.upstream.answer_of = lambda _host: no_model()
    house.found = {"a": {"m"}, "b": {"m"}}
    with pytest.raises(ModelNotFound):
        await house.send()
    assert (house.upstream.asked, house.looks) == (["a", "b", "a", "b"], 1)
    house.assert_nothing_is_held()


async def test_a_worker_that_is_busy_counts_for_more_than_one_without_the_model() -> None:
    house = House("ab")
    house.upstream.answers = {"a": Reply(429, {}, b"", is_stream=False), "b": no_model()}
    with pytest.raises(WorkersBusy):
        await house.send()
    house.assert_nothing_is_held()
