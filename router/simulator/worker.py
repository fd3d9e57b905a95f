"""One simulated worker without its sockets: runs the engine's virtual time by the wall clock and turns tokens to replies.

The engine advances to the exact virtual time at every arrival, departure and alarm, so a late alarm only delays the
client's bytes. A stream's first token is written at once and alone. Later tokens are collected for `stream_interval_ms`
of wall time and written as one event. Must never touch a stream between two writes.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from router.simulator.answers import Book
from router.simulator.engine import NS_PER_S, Engine, EngineLimits, Generation
from router.simulator.faults import Fault, Faults
from router.simulator.intake import Plan, PlannedChoice
from router.simulator.prefix_cache import PrefixCache
from router.simulator.settings import SimulatorSettings
from router.simulator.timer import make_alarm
from router.simulator.wire import Choice, End, Usage, encode_error_event

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
MAX_UNSENT_BYTES = 1 << 20
SLOWNESS = 10
_ALARM_SLACK_S = 2e-6


class Sink(Protocol):
    """The destination of a stream's events, such as the chunked body of a connection."""

    def write(self, events: bytes, *, is_last: bool) -> None: ...
    def drop(self) -> None: ...
    def reset(self) -> None: ...
    def garble(self) -> None: ...
    def unsent_bytes(self) -> int: ...


class Exchange:
    """A request in progress. `done` resolves after its last token: to the body of an unstreamed reply, else to b""."""

    __slots__ = ("done", "is_silent", "open_choices", "outbox", "plan", "runs", "sink")

    def __init__(self, plan: Plan, sink: Sink | None, done: asyncio.Future[bytes]) -> None:
        self.plan = plan
        self.sink = sink
        self.done = done
        self.outbox: list[bytes] = []
        self.runs = [Run(self, index, choice) for index, choice in enumerate(plan.choices)]
        self.open_choices = len(self.runs)
        self.is_silent = False  # a fault silenced it; only the client's departure ends it

    def usage(self) -> Usage:
        """The usage of the whole request. A prompt counts once for all its choices."""
        firsts = [run.choice.generation for run in self.runs[:: self.plan.n]]
        prompt_tokens = sum(generation.prompt_tokens for generation in firsts)
        cached_tokens = sum(generation.cached_tokens for generation in firsts)
        created_tokens = sum(run.created_tokens for run in self.runs)
        return Usage(prompt_tokens, cached_tokens, created_tokens, sum(run.sent_tokens for run in self.runs))


class Run:
    """One choice of an exchange, and how much of it was sent. wrote_s: monotonic time of its last write."""

    __slots__ = ("choice", "created_tokens", "exchange", "index", "sent_tokens", "wrote_s")

    def __init__(self, exchange: Exchange, index: int, choice: PlannedChoice) -> None:
        self.exchange = exchange
        self.index = index
        self.choice = choice
        self.sent_tokens = 0
        self.created_tokens = 0
        self.wrote_s = 0.0


class Worker:
    """An engine that runs on the event loop. A fault can be set at any time and holds from the next event on."""

    def __init__(self, settings: SimulatorSettings, book: Book, ids_of: Callable[[Sequence[bytes]], list[int]]) -> None:
        self._settings = settings
        self._faults = Faults(settings.fault)
        self.engine = Engine(
            EngineLimits(
                block_tokens=settings.block_tokens,
                max_num_seqs=settings.max_num_seqs,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                prefill_rate=settings.prefill_rate,
                attention_cost=settings.attention_cost,
                itl_ns=round(settings.itl_ms * 1e6),
                step_overhead_ns=round(settings.step_overhead_ms * 1e6),
            ),
            PrefixCache(settings.cache_blocks),
            request_latency_ns=round(settings.request_overhead_ms * 1e6),
        )
        self._book = book
        self._ids_of = ids_of
        self._loop = asyncio.get_running_loop()
        # Not the loop's time, which some loops keep in whole milliseconds. At `_start_s` the virtual time was `_start_ns`.
        self._start_s, self._start_ns = time.monotonic(), 0
        self._ns_per_wall_s = self._pace()
        self._interval_s = settings.stream_interval_ms / 1e3
        self._runs: dict[Generation, Run] = {}
        self._streaming: dict[Run, None] = {}
        self._alarm = make_alarm(self._on_alarm)
        self._alarm_ns: int | None = None
        self._tick: asyncio.TimerHandle | None = None
        self.is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def now_ns(self) -> int:
        """The worker's virtual time."""
        return self._start_ns + int((time.monotonic() - self._start_s) * self._ns_per_wall_s)

    @property
    def fault(self) -> Fault:
        """The standing fault."""
        return self._faults.fault

    def set_fault(self, fault: Fault, after_events: int | None = None) -> None:
        """Misbehave from now on. With `after_events`, break one stream after that many more events.

        Raises ValueError if `after_events` comes with a fault that breaks no stream.
        """
        now_s, now_ns = time.monotonic(), self.now_ns()
        self._faults.set(fault, after_events)
        self._start_s, self._start_ns, self._ns_per_wall_s = now_s, now_ns, self._pace()
        self._alarm_ns = -1  # the alarm must be set again, since its wall time has changed
        self._pump(now_ns)

    def _pace(self) -> float:
        """Virtual nanoseconds per wall second."""
        return self._settings.time_scale * NS_PER_S / (SLOWNESS if self.fault is Fault.SLOW else 1)

    def begin(self, plan: Plan, sink: Sink | None) -> Exchange:
        """Queue a request. The caller awaits `done` and always calls `leave` at the end."""
        exchange = Exchange(plan, sink, self._loop.create_future())
        now_ns = self.now_ns()
        work_ns = self._work_ns(exchange)
        for run in exchange.runs:
            self._runs[run.choice.generation] = run
            self.engine.submit(run.choice.generation, now_ns, work_ns)
            work_ns = 0
        self._idle.clear()
        self._pump(now_ns)
        return exchange

    def _work_ns(self, exchange: Exchange) -> int:
        """The front end's work for a whole request. `begin` charges it to the first choice."""
        prompts = exchange.runs[:: exchange.plan.n]
        tokens = sum(run.choice.generation.prompt_tokens for run in prompts)
        return round(self._settings.request_work_ms * 1e6 + self._settings.tokenize_us_per_token * 1e3 * tokens)

    def leave(self, exchange: Exchange) -> None:
        """Abort all that still runs for an exchange, because its client has the reply or has left."""
        if exchange.open_choices:
            now_ns = self.now_ns()
            for run in exchange.runs:
                self._runs.pop(run.choice.generation, None)
                self._streaming.pop(run, None)
                self.engine.abort(run.choice.generation, now_ns)
            exchange.open_choices = 0
            self._pump(now_ns)
        if not self._runs:
            self._idle.set()

    def refresh(self) -> None:
        """Advance the engine to now, so that its figures are current."""
        self._pump(self.now_ns())

    async def wait_idle(self) -> None:
        """Return once no request runs or waits."""
        await self._idle.wait()

    def close(self) -> None:
        """Stop the alarm. Requests in progress never end after this."""
        self.is_closed = True
        self._alarm.close()
        if self._tick is not None:
            self._tick.cancel()

    def _pump(self, now_ns: int) -> None:
        """Advance the engine, send its events to the clients, and set the alarm for the next event."""
        dirty: dict[Exchange, None] = {}
        for event in self.engine.advance(now_ns):
            run = self._runs.get(event.generation)
            if run is None:
                continue
            if event.is_last:
                self._end(run)
            else:
                self._open(run)
            dirty[run.exchange] = None
        if not self._interval_s:
            for run in self._streaming:
                if self._gather(run, self.engine.generated(run.choice.generation)):
                    dirty[run.exchange] = None
        for exchange in dirty:
            self._flush(exchange)
        self._arm()

    def _arm(self) -> None:
        if self.is_closed:
            return
        each_step = self._streaming and not self._interval_s
        next_ns = self.engine.next_step_ns() if each_step else self.engine.next_event_ns()
        if next_ns != self._alarm_ns:
            self._alarm_ns = next_ns
            at_s = None
            if next_ns is not None:
                at_s = self._start_s + (next_ns - self._start_ns) / self._ns_per_wall_s + _ALARM_SLACK_S
            self._alarm.set(at_s)
        if self._streaming and self._interval_s and self._tick is None:
            self._tick = self._loop.call_later(self._interval_s, self._on_tick)

    def _on_alarm(self) -> None:
        self._alarm_ns = None
        self._pump(self.now_ns())

    def _on_tick(self) -> None:
        """Write the collected tokens of each stream, except streams with a recent write or a slow reader."""
        self._tick = None
        self._pump(self.now_ns())
        before_s = time.monotonic() - self._interval_s / 2
        for run in list(self._streaming):
            sink = run.exchange.sink
            if run.wrote_s > before_s or sink is None or sink.unsent_bytes() > MAX_UNSENT_BYTES:
                continue
            if self._gather(run, self.engine.generated(run.choice.generation)):
                self._flush(run.exchange)

    def _open(self, run: Run) -> None:
        """Send the opening of a choice, and its first token in a separate event."""
        exchange, choice = run.exchange, run.choice
        generation = choice.generation
        block_tokens = self._settings.block_tokens
        full = generation.prompt_tokens // block_tokens * block_tokens
        run.created_tokens = full - generation.cached_tokens
        if exchange.sink is None:
            return
        ids = choice.prompt_ids if exchange.plan.wants_ids else None
        if opening := exchange.plan.wire.opening(run.index, exchange.usage(), ids):
            exchange.outbox.append(opening)
        if generation.output_tokens > 1:
            self._gather(run, 1)
            self._streaming[run] = None

    def _gather(self, run: Run, tokens: int) -> bool:
        """Put events for the first `tokens` tokens into the outbox, unless sent before. Returns whether there are any."""
        if tokens <= run.sent_tokens:
            return False
        if self._interval_s:
            self._delta(run, tokens, None)
            return True
        each = run.exchange.plan.tokens_per_event
        ends = range(run.sent_tokens + each if run.sent_tokens else 1, tokens + 1, each)
        for upto in ends:
            self._delta(run, upto, None)
        return bool(ends)

    def _delta(self, run: Run, tokens: int, end: End | None) -> None:
        choice, plan = run.choice, run.exchange.plan
        ids: Sequence[int] | None = None
        if choice.script is not None:
            text = b"".join(choice.script.texts[run.sent_tokens : tokens])
            ids = choice.script.ids[run.sent_tokens : tokens] if plan.wants_ids else None
        else:
            text = self._book.read(choice.place, run.sent_tokens, tokens)
            if plan.wants_ids:
                ids = self._ids_of(self._book.read_tokens(choice.place, run.sent_tokens, tokens))
        run.sent_tokens = tokens
        if delta := plan.wire.delta(run.index, text, ids, end):
            run.exchange.outbox.append(delta)

    def _end(self, run: Run) -> None:
        """Put the rest of the choice into the outbox, and after the last choice the end of the reply."""
        exchange, generation = run.exchange, run.choice.generation
        del self._runs[generation]
        self._streaming.pop(run, None)
        exchange.open_choices -= 1
        if exchange.sink is None:
            run.sent_tokens = generation.output_tokens
            return
        if not self._interval_s:
            self._gather(run, generation.output_tokens - 1)
        self._delta(run, generation.output_tokens, _end_of(run.choice))
        if not exchange.open_choices:
            plan = exchange.plan
            exchange.outbox.append(plan.wire.closing(exchange.usage()))

    def _flush(self, exchange: Exchange) -> None:
        """Write the whole outbox at once, or break the reply if a fault says so. Resolves `done` after the last choice."""
        sink = exchange.sink
        if exchange.done.done() or exchange.is_silent:
            return
        if not self._faults.is_quiet and self._is_broken(exchange):
            return
        if sink is not None:
            now_s = time.monotonic()
            for run in exchange.runs:
                run.wrote_s = now_s
            sink.write(b"".join(exchange.outbox), is_last=not exchange.open_choices)
            exchange.outbox.clear()
        if not exchange.open_choices:
            exchange.done.set_result(b"" if sink is not None else self._whole(exchange))

    def _is_broken(self, exchange: Exchange) -> bool:
        """Apply the worker's fault to a reply in progress. Returns whether one hit it."""
        sink = exchange.sink
        if sink is None:
            exchange.is_silent = self.fault is Fault.HANG
            return exchange.is_silent
        fault, through = self._faults.befall(len(exchange.outbox))
        if fault is Fault.NONE:
            return False
        sink.write(b"".join(exchange.outbox[:through]), is_last=False)
        after = b"".join(exchange.outbox[through:])
        exchange.outbox.clear()
        exchange.is_silent = fault in (Fault.HANG, Fault.GARBAGE)
        if fault is Fault.GARBAGE:
            sink.garble()
        elif fault is Fault.DEAD:
            sink.write(encode_error_event(500, ENGINE_DEAD, "InternalServerError"), is_last=True)
        elif fault is Fault.RESET:
            sink.reset()
        elif fault is not Fault.HANG:
            sink.write(after[: after.find(b"\n\n") // 2] if fault is Fault.TRUNCATE else b"", is_last=False)
            sink.drop()
        if not exchange.is_silent:
            exchange.done.set_result(b"")
        return True

    def _whole(self, exchange: Exchange) -> bytes:
        plan = exchange.plan
        choices = []
        for run in exchange.runs:
            planned = run.choice
            tokens = planned.generation.output_tokens
            if tokens == 0:
                continue
            if planned.script is not None:
                text, ids = b"".join(planned.script.texts), planned.script.ids
            else:
                text = self._book.read(planned.place, 0, tokens)
                ids = self._ids_of(self._book.read_tokens(planned.place, 0, tokens)) if plan.wants_ids else []
            choices.append(Choice(text, _end_of(planned), planned.prompt_ids, ids if plan.wants_ids else None))
        return plan.wire.whole(choices, exchange.usage())


def _end_of(choice: PlannedChoice) -> End:
    return End(choice.generation.finish_reason, choice.script.stop_reason if choice.script is not None else None)
