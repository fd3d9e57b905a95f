"""A stream that outlives its workers, with model workers and fakes for clients and the clock."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pytest

from router.config.routing import ResumptionConfig, RetriesConfig
from router.core.fleet.affinity import LastWorkers
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules, WorkerState
from router.core.fleet.rules import FleetRules
from router.core.index.prefix_index import PrefixIndex
from router.core.request.attempt import (
    AttemptFailed,
    CannotConnect,
    Failure,
    ReplyTooLarge,
    WorkerDied,
    WorkerErred,
    WorkerSilent,
)
from router.core.request.poison_guard import PROGRESS_CHUNKS
from router.core.request.record import Record, Resumption, ResumptionOutcome
from router.core.request.reply import Reply, StreamEnd
from router.core.request.request import Request
from router.core.request.routes import Route
from router.core.tenants.memory import Holding
from router.core.tenants.tenant import EVERYBODY, Caller
from router.core.worker import WorkerAddress
from router.proxy.admission import Admission
from router.proxy.dispatch import Dispatcher
from router.proxy.ports import Client
from router.proxy.selection import WorkerSelector
from router.wire.sse import Filter
from tests.proxy.test_dispatch import OPEN, FakeClient, InOrder
from tests.wire.engine import PROMPT_IDS, Engine, Step, event, events_of
from tests.wire.parsed import parse_request

WORDS = Engine([b"one ", b"two ", b"three ", b"f", "ü".encode()[:1], "ü".encode()[1:], b"nf ", b"six ", b"seven"])
TEXT = "one two three fünf six seven"
STREAM = Reply(200, {}, b"", is_stream=True)
ERROR = event({"error": {"message": "died", "code": 500}})


@dataclass
class Script:
    """One exchange. ``upto``: events until the stream breaks with ``end``; None: all."""

    upto: int | None = None
    end: StreamEnd = StreamEnd.DIED
    answer: Reply | AttemptFailed | None = None
    unbroken: AttemptFailed | None = None
    """What ``require_unbroken`` raises."""
    hold: str = ""
    """The phase in which the worker says nothing more: "ask", "post" or "relay"."""
    error: bytes = b""
    chunks: int = 0
    """Of the stream, as the record counts them."""
    steps: list[Step] | None = None


@dataclass
class FakeWorkers:
    """By host, scripts for its exchanges in order; whoever has none left answers all."""

    scripts: dict[str, list[Script]] = field(default_factory=lambda: defaultdict(list))
    posts: dict[str, Reply | AttemptFailed] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    open: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)
    on_post: Callable[[str], object] = id
    """What befalls while a host says what text some ids are."""

    def exchange(self, worker: WorkerAddress) -> FakeExchange:
        return FakeExchange(self, worker.host)

    @property
    def hosts(self) -> list[str]:
        return [host for host, _ in self.asked]


class FakeExchange:
    def __init__(self, workers: FakeWorkers, host: str) -> None:
        self._workers = workers
        self._host = host
        self._script = Script()
        self._events: list[bytes] = []
        self._seen = b""
        self._watch: Filter | None = None

    def __enter__(self) -> FakeExchange:
        self._workers.open += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._workers.open -= 1

    async def _say_nothing(self) -> None:
        self._workers.held.set()
        await asyncio.Event().wait()

    async def post(self, path: str, body: bytes, answer_s: float) -> Reply:
        assert path == "/detokenize"
        self._workers.on_post(self._host)
        scripts = self._workers.scripts[self._host]
        if scripts and scripts[0].hold == "post":
            await self._say_nothing()
        answer = self._workers.posts.get(self._host)
        if isinstance(answer, AttemptFailed):
            raise answer
        text = WORDS.text_of(json.loads(body)["tokens"])
        return answer or Reply(200, {}, json.dumps({"prompt": text}).encode(), is_stream=False)

    async def ask(
        self, request: Request, watch: Filter | None, memory: Holding, first_event_s: float | None = None
    ) -> Reply:
        workers, body = self._workers, json.loads(request.body)
        workers.asked.append((self._host, body))
        if scripts := workers.scripts[self._host]:
            self._script = scripts[0] if scripts[0].hold == "post" else scripts.pop(0)
        script = self._script
        if script.hold == "ask":
            await self._say_nothing()
        if isinstance(script.answer, AttemptFailed):
            raise script.answer
        if script.answer is not None:
            return script.answer
        assert watch is not None
        prompt = body["prompt"] if request.route is Route.COMPLETIONS else PROMPT_IDS
        steps = script.steps or WORDS.run(prompt, max_tokens=body.get("max_tokens", 100))
        self._watch = watch
        self._events = events_of(steps, request.route, prompt, self._host)[: script.upto]
        if script.error:
            self._events.append(script.error)
        while self._events and not self._seen and not watch.failed:
            self._seen = watch.take(self._events.pop(0))
        if not self._seen:
            raise WorkerDied("x")
        return STREAM

    def require_unbroken(self) -> None:
        if self._script.unbroken is not None:
            raise self._script.unbroken

    async def relay(self, client: Client, record: Record) -> StreamEnd:
        assert self._watch is not None
        record.chunks += self._script.chunks
        client.write(self._seen)
        for piece in self._events:
            client.write(self._watch.take(piece))
            await asyncio.sleep(0)
        if self._script.hold == "relay":
            await self._say_nothing()
        if self._watch.closed:
            return StreamEnd.DONE
        return StreamEnd.ERRED if self._watch.error else self._script.end


class Reader(FakeClient):
    """A client that reads a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = b""
        self.has_ended = False

    def write(self, data: bytes) -> None:
        self.seen += data

    def write_last(self, data: bytes) -> None:
        self.write(data)

    def end_stream(self, events: bytes) -> None:
        self.seen += events
        self.has_ended = True

    @property
    def choices(self) -> list[Any]:
        chunks = [json.loads(line[6:]) for line in self.seen.decode().split("\n\n") if line.startswith("data: {")]
        return [choice for chunk in chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)

    @property
    def reasons(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices if choice["finish_reason"]]


class House:
    """A dispatcher with workers that are up and serve ``m``; a clock that sleeping moves on."""

    def __init__(
        self, hosts: str = "abc", *, max_resumptions: int = 3, min_retries: int = 3, max_deaths: int = 9
    ) -> None:
        index = PrefixIndex(10_000, 1_000)
        self.fleet = Fleet(FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000), index)
        self.fleet.set_members([WorkerAddress("http", host, 80) for host in hosts])
        for member in self.fleet.members():
            self.fleet.set_models(member, {"m": {"id": "m", "max_model_len": 100}})
            if member.health.on_probe_answered(0.0):
                self.fleet.on_health_changed(member)
        self.workers = FakeWorkers()
        self.policy = InOrder()
        self.records: list[Record] = []
        self.now = 100.0
        self.wakes: list[str] = []
        self.dispatcher = Dispatcher(
            RetriesConfig(max_deaths=max_deaths, min_budget=min_retries),
            ResumptionConfig(max_attempts=max_resumptions, wait_s=1.0, max_total_kept_bytes=1 << 24),
            WorkerSelector(self.fleet, index, LastWorkers(10), self.policy, lambda: self.now, 30.0),
            self.workers,
            self.records.append,
            lambda: self.now,
            Admission(OPEN, self.fleet, lambda: self.now, lambda: self.now),
            self.sleep,
        )
        self.client = Reader()

    def script(self, **scripts: Script | list[Script]) -> None:
        for host, script in scripts.items():
            self.workers.scripts[host] += script if isinstance(script, list) else [script]

    async def sleep(self, seconds: float) -> None:
        """Whoever is in ``wakes`` comes up meanwhile."""
        await asyncio.sleep(0)
        self.now += seconds
        while self.wakes:
            member = self.member(self.wakes.pop())
            member.health.on_probe_answered(member.health.ejected_until)
            self.fleet.on_health_changed(member)

    def member(self, host: str) -> Any:
        return next(member for member in self.fleet.members() if member.address.host == host)

    async def send(self, **members: Any) -> Record:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "temperature": 0}
        request = parse_request(Route.CHAT, json.dumps(body | members).encode(), {}, Caller(rules=EVERYBODY), "r-1")
        await self.dispatcher.dispatch(request, self.client, self.now)
        return self.records[-1]

    def assert_whole(self) -> None:
        assert (self.client.text, self.client.reasons) == (TEXT, ["stop"])
        assert self.client.seen.count(b"[DONE]") == 1
        assert b"token_ids" not in self.client.seen
        assert not self.client.broken
        self.assert_nothing_is_held()

    def assert_broken_off(self) -> None:
        assert [error.code for error in self.client.broken] == ["worker_error"]
        assert b"[DONE]" not in self.client.seen
        self.assert_nothing_is_held()

    def assert_nothing_is_held(self) -> None:
        assert sum(self.fleet.figures.in_flight) == sum(self.fleet.figures.queued_prefill_tokens) == 0
        assert not any(member.leases for member in self.fleet.members())
        assert self.dispatcher.budget.retrying == 0
        assert self.dispatcher.kept.bytes == self.workers.open == 0


ALL = range(1, 11)
"""Every number of events after which the first worker's stream, of a role and ten tokens, can break."""


@pytest.mark.parametrize("upto", ALL)
@pytest.mark.parametrize("end", [StreamEnd.DIED, StreamEnd.SILENT, StreamEnd.SLOW])
async def test_a_stream_goes_on_with_the_next_worker_wherever_it_breaks(upto: int, end: StreamEnd) -> None:
    house = House()
    house.script(a=Script(upto, end))
    record = await house.send()
    house.assert_whole()
    assert house.workers.hosts == ["a", "b"]
    assert record.resumptions == [
        Resumption(Failure.DIED if end is StreamEnd.DIED else Failure.TIMEOUT, ResumptionOutcome.EXACT)
    ]
    assert (record.worker, record.outcome, record.attempts) == (house.member("b").name, "ok", 2)
    died, rescuer = record.tried
    assert (died.worker, died.failure, died.broke) == (record.first_choice, record.resumptions[0].cause, True)
    assert (rescuer.worker, rescuer.failure, rescuer.broke) == (record.worker, "", False)
    assert (record.prompt_tokens, record.completion_tokens) == (3, 10)


async def test_a_workers_error_event_is_not_shown_and_another_goes_on() -> None:
    house = House()
    house.script(a=Script(4, error=ERROR))
    record = await house.send()
    house.assert_whole()
    assert record.resumptions[0].cause == "error"
    assert house.member("a").health.state is WorkerState.UP


@pytest.mark.parametrize("code", [b"400", b"404", b"422"])
async def test_an_error_that_is_the_requests_is_passed_on_and_says_nothing_of_its_worker(code: bytes) -> None:
    house = House()
    wrong = ERROR.replace(b"500", code)
    house.script(a=Script(4, error=wrong))
    record = await house.send()
    assert house.client.passed_on == [wrong]
    assert not house.client.broken
    assert b"[DONE]" not in house.client.seen
    assert house.workers.hosts == ["a"]
    assert house.member("a").health.failed_requests == 0
    assert (record.outcome, record.resumptions) == ("client_error", [])
    house.assert_nothing_is_held()


@pytest.mark.parametrize(("code", "failed_requests"), [(b"429", 0), (b"503", 0), (b"401", 1), (b"500", 1)])
async def test_an_error_that_is_the_workers_is_taken_to_others(code: bytes, failed_requests: int) -> None:
    house = House()
    house.script(a=Script(4, error=ERROR.replace(b"500", code)))
    record = await house.send()
    house.assert_whole()
    assert house.workers.hosts == ["a", "b"]
    assert house.member("a").health.failed_requests == failed_requests
    assert record.resumptions == [Resumption(Failure.ERROR, ResumptionOutcome.EXACT)]


async def test_an_error_of_the_next_worker_that_is_the_requests_ends_it_and_says_nothing_of_either() -> None:
    house = House()
    house.script(a=Script(4), b=Script(3, error=ERROR.replace(b"500", b"400")))
    record = await house.send()
    house.assert_broken_off()
    assert house.workers.hosts == ["a", "b"]
    assert house.member("b").health.failed_requests == 0
    assert record.resumptions == [
        Resumption(Failure.DIED, ResumptionOutcome.EXACT),
        Resumption(Failure.DIED, ResumptionOutcome.UNSAFE),
    ]
    assert [(each.worker, each.failure) for each in record.tried] == [
        (house.member("a").name, "died"),
        (house.member("b").name, "unsafe"),
    ]


ENGINE_DIED = event({"error": {"message": "EngineCore encountered an issue.", "code": 500}})
DEATHS = {
    "cut": Script(3),
    "before its first event": Script(answer=WorkerDied("x")),
    "engine": Script(3, error=ENGINE_DIED),
    "engine, before its first event": Script(answer=Reply(500, {}, ENGINE_DIED, is_stream=False)),
}


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
async def test_a_stream_under_which_workers_die_one_after_another_is_given_up(
    death: Script, caplog: pytest.LogCaptureFixture
) -> None:
    house = House("abcdef", max_deaths=3, max_resumptions=5)
    house.script(a=Script(4), b=death, c=death)
    record = await house.send()
    house.assert_broken_off()
    assert house.workers.hosts == ["a", "b", "c"]
    assert [(error.message, error.retryable) for error in house.client.broken] == [
        ("the request was given up: 3 workers died under it, one after another", False)
    ]
    assert record.given_up
    assert [each.worker for each in record.tried] == [house.member(host).name for host in "abc"]
    assert all(each.failure for each in record.tried)
    assert record.resumptions[-1].outcome == "failed"
    (told,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert (told.message, told.request_id) == ("request given up", record.request_id)  # type: ignore[attr-defined]
    assert told.died == [house.member(host).name for host in "abc"]  # type: ignore[attr-defined]


async def test_a_stream_that_made_progress_between_deaths_is_not_given_up() -> None:
    house = House("abcdef", max_deaths=2, max_resumptions=5)
    house.script(
        a=Script(3, chunks=PROGRESS_CHUNKS), b=Script(3, chunks=PROGRESS_CHUNKS), c=Script(3, chunks=PROGRESS_CHUNKS)
    )
    record = await house.send()
    house.assert_whole()
    assert not record.given_up


async def test_a_worker_that_cannot_be_reached_did_not_die_of_the_stream() -> None:
    house = House("abcd", max_deaths=2)
    house.script(a=Script(4), b=Script(answer=CannotConnect("x")), c=Script(answer=CannotConnect("x")))
    await house.send()
    house.assert_whole()
    assert house.workers.hosts == ["a", "b", "c", "d"]


async def test_deaths_before_the_first_event_and_behind_it_are_one_count() -> None:
    house = House("abcd", max_deaths=2)
    house.script(a=Script(answer=WorkerDied("x")), b=Script(4))
    record = await house.send()
    house.assert_broken_off()
    assert house.workers.hosts == ["a", "b"]
    assert record.given_up


async def test_a_stream_that_is_whole_but_for_its_end_is_completed_however_many_died() -> None:
    house = House("ab", max_deaths=1)
    house.script(a=Script(11))
    await house.send()
    house.assert_whole()


async def test_the_gap_is_from_the_break_to_the_next_workers_first_text() -> None:
    house = House("ab")
    house.script(a=[Script(4), Script()], b=Script(answer=WorkerDied("x")))
    house.wakes = ["a"]
    record = await house.send()
    house.assert_whole()
    assert [round(resumption.gap_s, 2) for resumption in record.resumptions] == [0.05]


@pytest.mark.parametrize(
    "script",
    [
        Script(answer=WorkerDied("x")),
        Script(answer=WorkerSilent("x")),
        Script(answer=Reply(500, {}, b"", is_stream=False)),
        Script(answer=Reply(503, {}, b"", is_stream=False)),
        Script(unbroken=WorkerDied("x")),
        Script(unbroken=WorkerErred("x")),
    ],
    ids=lambda script: str(script.answer or script.unbroken)[:20],
)
async def test_a_worker_that_fails_before_its_first_text_is_passed_over(script: Script) -> None:
    house = House()
    house.script(a=Script(4), b=script)
    record = await house.send()
    house.assert_whole()
    assert house.workers.hosts == ["a", "b", "c"]
    assert [resumption.outcome for resumption in record.resumptions] == ["exact"]


@pytest.mark.parametrize("newcomers", ["", "de"])
async def test_a_worker_that_leaves_while_it_is_asked_for_the_seam_is_passed_over(newcomers: str) -> None:
    house = House()
    house.script(a=Script(4))

    def leave(host: str) -> None:
        if host == "b":
            house.fleet.set_members([WorkerAddress("http", each, 80) for each in "ac" + newcomers])

    house.workers.on_post = leave
    await house.send(stop="no")
    house.assert_whole()
    assert house.workers.hosts == ["a", "c"]
    assert not any(house.fleet.figures.in_flight)


async def test_a_worker_that_never_answered_does_not_count_as_holding_the_prompt() -> None:
    house = House()
    house.script(a=Script(4), b=Script(answer=WorkerSilent("x")))
    messages = [{"role": "user", "content": "p" * 8192}]
    await house.send(messages=messages)
    house.assert_whole()
    await house.send(messages=messages)
    matches = house.policy.facts[-1].matches
    assert matches.tokens(house.member("b").position) == 0.0
    assert matches.tokens(house.member("c").position) > 0.0


async def test_an_answer_whose_text_was_still_held_for_a_stop_string_is_asked_for_anew() -> None:
    house = House()
    held = [Step([10], ""), Step([11], "")]
    house.script(a=Script(3, steps=held))
    await house.send(stop="no such words")
    house.assert_whole()
    assert [hosted["messages"] for _, hosted in house.workers.asked] == [[{"role": "user", "content": "hi"}]] * 2


@pytest.mark.parametrize("second", range(1, 6))
async def test_a_continued_stream_that_breaks_is_gone_on_with_again(second: int) -> None:
    house = House()
    house.script(a=Script(4), b=Script(second))
    record = await house.send()
    house.assert_whole()
    assert house.workers.hosts == ["a", "b", "c"]
    assert [resumption.outcome for resumption in record.resumptions] == ["exact", "exact"]
    assert house.member("b").health.state is WorkerState.EJECTED


async def test_attempts_are_bounded() -> None:
    house = House("abcdef", max_resumptions=3)
    house.script(**{host: Script(2) for host in "abcdef"})
    record = await house.send()
    house.assert_broken_off()
    assert house.workers.hosts == ["a", "b", "c", "d"]
    assert record.resumptions[-1].outcome == "failed"


async def test_one_resumption_is_outside_the_budget_and_the_next_is_not_where_a_worker_may_have_worked_in_vain() -> (
    None
):
    house = House(min_retries=0)
    house.script(a=Script(4))
    await house.send()
    house.assert_whole()
    house = House(min_retries=0)
    house.script(a=Script(4), b=Script(answer=WorkerSilent("x")))
    record = await house.send()
    house.assert_broken_off()
    assert house.workers.hosts == ["a", "b"]
    assert record.resumptions == [Resumption(Failure.DIED, ResumptionOutcome.FAILED)]


async def test_deaths_are_outside_the_budget() -> None:
    house = House(min_retries=0)
    house.script(a=Script(4), b=Script(answer=WorkerDied("x")))
    await house.send()
    house.assert_whole()


async def test_a_stream_waits_ever_longer_for_its_only_worker_and_nobody_asked_is_no_attempt() -> None:
    house = House("a", max_resumptions=1)
    house.script(a=[Script(4), *[Script(answer=CannotConnect("x"))] * 3])
    record = await house.send()
    house.assert_whole()
    assert [round(resumption.gap_s, 2) for resumption in record.resumptions] == [0.2]


async def test_a_stream_gives_up_when_nobody_comes() -> None:
    house = House("a")
    house.script(a=[Script(4), *[Script(answer=CannotConnect("x"))] * 100])
    record = await house.send()
    house.assert_broken_off()
    assert 101.0 <= house.now < 101.5
    assert record.resumptions == [Resumption(Failure.DIED, ResumptionOutcome.FAILED)]


async def test_a_worker_that_leaks_the_prompt_is_not_relayed() -> None:
    house = House()
    house.script(a=Script(4), b=Script(steps=[Step([13], "SYSTEM PROMPT: one two three f")]))
    record = await house.send()
    house.assert_broken_off()
    assert b"SYSTEM" not in house.client.seen
    assert record.resumptions == [Resumption(Failure.DIED, ResumptionOutcome.UNSAFE)]


@pytest.mark.parametrize(
    ("members", "upto"),
    [
        ({"presence_penalty": 1}, 4),
        ({"response_format": {"type": "json_object"}}, 4),
        ({"n": 2}, 4),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 4),
        ({"n": 2}, -2),
    ],
    ids=str,
)
async def test_what_is_unsafe_is_broken_off_with_an_error(members: dict[str, Any], upto: int) -> None:
    """With several choices also where one of them has finished: the others have not."""
    house = House()
    house.script(a=Script(upto))
    record = await house.send(**members)
    house.assert_broken_off()
    assert house.workers.hosts == ["a"]
    assert record.resumptions == [Resumption(Failure.DIED, ResumptionOutcome.UNSAFE)]


@pytest.mark.parametrize(
    "answer", [Reply(404, {}, b"{}", is_stream=False), ReplyTooLarge("x")], ids=["refused", "too large"]
)
async def test_an_answer_that_no_other_worker_would_better_ends_it(answer: Reply | AttemptFailed) -> None:
    house = House()
    house.script(a=Script(4), b=Script(answer=answer))
    record = await house.send()
    house.assert_broken_off()
    assert house.workers.hosts == ["a", "b"]
    assert house.member("b").health.state is WorkerState.UP
    assert record.resumptions == [Resumption(Failure.DIED, ResumptionOutcome.UNSAFE)]


@pytest.mark.parametrize(
    "post", [Reply(404, {}, b"{}", is_stream=False), Reply(200, {}, b"?", is_stream=False), ReplyTooLarge("x")]
)
async def test_a_worker_that_cannot_say_what_ids_mean_is_not_gone_on_with(post: Reply | AttemptFailed) -> None:
    house = House()
    house.script(a=Script(4))
    house.workers.posts["b"] = post
    await house.send()
    house.assert_broken_off()


async def test_another_text_than_the_client_has_is_no_failure_of_the_worker() -> None:
    house = House()
    steps = [Step([10], "a"), Step([11], "\ufffd")]
    house.script(a=Script(3, steps=steps), b=Script(steps=[Step([11], "zzz")]))
    record = await house.send()
    house.assert_broken_off()
    assert house.member("b").health.state is WorkerState.UP
    assert record.resumptions == [Resumption(Failure.DIED, ResumptionOutcome.UNSAFE)]


@pytest.mark.parametrize("upto", [-2, -1])
@pytest.mark.parametrize("wants_usage", [True, False])
async def test_a_stream_that_broke_behind_its_end_needs_no_worker(upto: int, wants_usage: bool) -> None:
    house = House()
    house.script(a=Script(upto))
    record = await house.send(stream_options={"include_usage": wants_usage})
    house.assert_whole()
    assert house.workers.hosts == ["a"]
    assert house.client.has_ended
    assert house.client.seen.count(b'"completion_tokens":10') == wants_usage
    assert (record.outcome, record.resumptions) == ("ok", [Resumption(Failure.DIED, ResumptionOutcome.FINISHED)])


async def test_a_continued_stream_that_broke_behind_its_end_needs_no_other_worker() -> None:
    house = House()
    house.script(a=Script(4), b=Script(-2))
    record = await house.send()
    house.assert_whole()
    assert house.workers.hosts == ["a", "b"]
    assert [resumption.outcome for resumption in record.resumptions] == ["exact", "finished"]
    assert (record.outcome, record.completion_tokens) == ("ok", 10)


async def test_an_answer_of_which_no_text_was_seen_is_asked_for_anew() -> None:
    house = House()
    house.script(a=Script(1))
    await house.send()
    house.assert_whole()
    (_, first), (_, second) = house.workers.asked
    assert first == second


async def test_what_the_next_worker_parses_is_not_lost_unseen() -> None:
    """Reasoning cannot be shown by who only knows text."""
    house = House()
    house.script(a=Script(1), b=Script(error=event({"choices": [{"delta": {"reasoning": "hm"}}]}), upto=2))
    await house.send()
    house.assert_broken_off()


async def test_without_ids_an_answer_goes_on_by_its_text() -> None:
    house = House()
    bare = [Step([], "one "), Step([], "two "), Step([], "three")]
    house.script(a=Script(3, steps=bare), b=Script(steps=[Step([], "three", "stop")]))
    record = await house.send()
    assert (house.client.text, house.client.reasons) == ("one two three", ["stop"])
    assert [resumption.outcome for resumption in record.resumptions] == ["text"]
    assert house.workers.asked[1][1]["messages"][-1] == {"role": "assistant", "content": "one two "}
    house.assert_nothing_is_held()


@pytest.mark.parametrize("hold", ["ask", "post", "relay"])
async def test_a_client_that_leaves_while_its_stream_is_mended_leaves_nothing_behind(hold: str) -> None:
    house = House()
    house.script(a=Script(4), b=Script(4, hold=hold))
    sending = asyncio.create_task(house.send())
    await house.workers.held.wait()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert house.records[-1].outcome == "client_gone"
    assert not house.client.broken
    house.assert_nothing_is_held()


async def test_a_client_that_leaves_while_nobody_is_up_leaves_nothing_behind() -> None:
    house = House("a")
    house.script(a=[Script(4), *[Script(answer=CannotConnect("x"))] * 100])
    sending = asyncio.create_task(house.send())
    while house.now < 100.1:
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    house.assert_nothing_is_held()
