"""One keep-alive connection to a worker: sends a request, reads the reply, and relays a stream to its client.

``connection_state`` has the states and what moves them, ``reply_reader`` reads a reply, ``relay`` writes a stream to the
client. This module joins them to the transport, the deadlines and the owner that waits. A large read is processed in slices,
so that no worker can stop the event loop (see ``read_scheduler``). Any error makes the connection unusable, and ``release``
aborts one that is not idle and clean.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from math import inf

from router.config.workers import TimeoutsConfig
from router.core.fleet.patience import Signs
from router.core.request.attempt import AttemptFailed, WorkerDied, WorkerErred, WorkerHungUp
from router.core.request.reply import Reply
from router.core.tenants.memory import Holding, MemoryFull
from router.proxy.ports import Client
from router.runtime.reference_cycles import untie_transport
from router.upstream.connection_state import TRANSITIONS, Event, State
from router.upstream.read_scheduler import SLICE_BYTES, ReadScheduler
from router.upstream.relay import Relay, RelayEvent
from router.upstream.reply_reader import RejectedReply, ReplyReader
from router.upstream.silence import Silence
from router.upstream.sockets import prepare
from router.wire.dialects import read_error
from router.wire.framing import ChunkedReader, UntilClosed
from router.wire.sse import Filter

SMALL_BODY_BYTES = 16384
"""Up to this size a copy is cheaper than a second buffer for the kernel."""

UNRESPONSIVE_S, UNRESPONSIVE_WHOLE_S = 3.0, 30.0
"""When a worker answers no probes, a stream and a whole reply are aborted after this silence. The worker may be too busy for
probes and still at work on a whole reply, of which nothing is seen before its end."""

EAGER_BYTES = 4096
"""A read up to this size, a chunk or a dozen, is processed at once. A larger one waits for its share of the loop."""

TAIL_S = 1.0
"""How long a worker may take for its last chunk, which usually is in the read that closed the stream."""

_AWAITED = (State.HEAD, State.WHOLE, State.EVENTS, State.RELAY)
"""The worker owes a reply."""


class WorkerConnection(asyncio.Protocol):
    """Owned by one request at a time, from ``ask`` to ``release``. ``rejected_replies`` counts replies by why they were
    rejected."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: TimeoutsConfig,
        on_idle: Callable[[WorkerConnection], None],
        scheduler: ReadScheduler,
        rejected_replies: Counter[str],
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._on_idle = on_idle
        self._scheduler = scheduler
        self._rejected_replies = rejected_replies
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._filter: Filter | None = None
        self._reader = ReplyReader(0, 0, None)
        self._relay: Relay | None = None
        self._backlog = b""
        """A read that waits for its share of the loop, or for its client. It is processed up to ``_backlog_at``."""
        self._backlog_at = 0
        self._is_paused = False
        self._silence = Silence()
        self.state = State.IDLE
        self.error: AttemptFailed | MemoryFull | None = None
        self.idle_since = 0.0

    def __repr__(self) -> str:
        return f"<WorkerConnection {self.peer_host or 'closed'} {self.state.name} error={self.error!r}>"

    # Calls of the owner

    @property
    def is_usable(self) -> bool:
        return self.state is State.IDLE and self._transport is not None and not self._transport.is_closing()

    @property
    def is_closed(self) -> bool:
        """True once the transport is gone."""
        return self._transport is None

    @property
    def has_answered(self) -> bool:
        """True once a byte of the reply has come."""
        return self._reader.has_answered

    @property
    def deadline(self) -> float:
        """On the loop's clock. The pool calls ``expire`` after it."""
        return self._silence.due_at

    @property
    def peer_host(self) -> str:
        """The address that it is connected to."""
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else ""

    def ask(
        self,
        head: bytes,
        body: bytes,
        stream_filter: Filter | None,
        within_s: float | None = None,
        *,
        may_wait: bool = False,
        memory: Holding | None = None,
        max_reply_bytes: int | None = None,
    ) -> None:
        """Send a request. One that asks for a stream needs ``stream_filter``. ``within_s`` and ``max_reply_bytes`` lower the
        limits of time, to the reply or the first event, and of size. ``may_wait``: wait longer while the worker is seen to be
        at work. ``memory`` grows with what is held of the reply. Raises WorkerHungUp on a closed connection."""
        transport = self._transport
        if transport is None or not self.is_usable:
            raise WorkerHungUp("the connection is closed")
        limits = self._limits
        max_bytes = limits.max_reply_bytes if max_reply_bytes is None else max_reply_bytes
        self._reader = ReplyReader(max_bytes, limits.max_event_bytes, memory)
        self._filter = stream_filter
        self._is_paused = False
        self._move(Event.ASK)
        limit_s = limits.answer_s if stream_filter is None else limits.first_event_s
        allowed_s = limit_s if within_s is None else min(limit_s, within_s)
        queued_s = max(limits.first_event_s, allowed_s)
        self._silence.begin(self._loop.time(), allowed_s, queued_s, limits.silence_s if may_wait else 0.0)
        if len(body) <= SMALL_BODY_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    async def reply(self) -> Reply:
        """A whole reply, or a stream of which the first event is here. Raises AttemptFailed, MemoryFull."""
        reader = self._reader
        while self.state in (State.HEAD, State.WHOLE) or (self.state is State.EVENTS and not reader.pieces):
            await self._wait()
        if self.error is not None:
            raise self.error
        is_stream = self.state is State.EVENTS
        return Reply(reader.head.status, reader.head.headers, b"" if is_stream else reader.take_whole(), is_stream)

    def start_relay(self, client: Client, head: bytes, observe_gap: Callable[[float], None]) -> Relay:
        """Relay the stream to ``client``. ``head`` and the events that are here leave in one write."""
        if self._filter is None:
            raise RuntimeError("only a stream is relayed")
        reader = self._reader
        relay = self._relay = Relay(client, self._filter, reader, observe_gap)
        self._move(Event.RELAY)
        if self.state is not State.RELAY:
            return relay  # it failed since ``reply``
        was_paused, self._is_paused = self._is_paused, False
        self._silence.begin_stream(self._loop.time(), self._limits.event_gap_s)
        events = b"".join(reader.pieces)
        reader.pieces.clear()
        self._on_relay(relay.send(events, head))
        if reader.body.finished:
            self._on_body_end()
        if was_paused:
            self._read_on()
        return relay

    async def relay_event(self) -> RelayEvent:
        """Wait until the stream needs its owner."""
        while self.state is State.RELAY and not self._is_paused:
            await self._wait()
        if self.state is State.RELAY:
            return RelayEvent.FULL
        return _EARLY_ENDS.get(self.state, RelayEvent.DONE)

    def resume(self) -> None:
        """The client reads again."""
        self._is_paused = False
        self._silence.hear(self._loop.time())
        self._read_on()

    def release(self) -> None:
        """Give the connection back. It is kept if it is clean; else it is aborted, which stops the worker's work at once."""
        self._relay = self._filter = None
        self.error = None  # its traceback holds this object
        self._reader.release()
        if self.state is State.IDLE:
            self._on_idle(self)
        elif self.state is State.TAIL:
            self._silence.due_at = self._loop.time() + TAIL_S
        else:
            self.abort()

    def abort(self) -> None:
        self._close(Event.ABORT)

    def expire(self, signs: Signs | None = None) -> None:
        """The deadline has passed. ``signs`` tell of the worker's work: while there are some the deadline moves on, up to the
        longest silence. A paused stream waits for its client, and its owner ends that wait."""
        if self.state is State.TAIL:
            self.abort()
        elif not self._is_paused and (error := self._silence.extend(self._loop.time(), signs)) is not None:
            self._fail(error)

    def abort_unresponsive(self) -> None:
        """The worker answers no probes: a request that has heard nothing of it for a while fails before its deadline."""
        patience_s = UNRESPONSIVE_WHOLE_S if self._filter is None else UNRESPONSIVE_S
        if self._is_awaited and self._loop.time() - self._silence.heard_at >= patience_s:
            self._fail(WorkerDied("the worker fell silent, and answers no probes"))

    def is_overdue(self, now: float) -> bool:
        """The worker is silent beyond its deadline, and the request still waits."""
        return self._is_awaited and self._silence.is_overdue(now)

    @property
    def _is_awaited(self) -> bool:
        return self.state in _AWAITED and not self._is_paused

    # Calls of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a socket's transport reads and writes
        if (sock := transport.get_extra_info("socket")) is not None:
            prepare(sock)

    def connection_lost(self, exc: Exception | None) -> None:
        untie_transport(self._transport)
        self._transport = None
        if self.state in _AWAITED:
            self._fail(WorkerHungUp("the worker reset the connection" if exc else "the worker closed the connection"))
        else:
            self.abort()

    def eof_received(self) -> bool:
        if self.state is State.WHOLE and isinstance(self._reader.body, UntilClosed):
            self._move(Event.END)
            self._wake()
        return False

    def data_received(self, data: bytes) -> None:
        state = self.state
        if self._backlog:
            self._backlog = self._backlog[self._backlog_at :] + data
            self._backlog_at = 0
        elif state is State.RELAY:
            relay: Relay = self._relay  # type: ignore[assignment]  # there is one in this state
            silence, now = self._silence, self._loop.time()
            relay.observe_gap(now - silence.heard_at)
            silence.heard_at = now  # in place of ``hear``, to save each chunk a call
            silence.due_at = now + silence.allowed_s
            relay.reads += 1
            if not (frame := relay.plain_frame(data)):
                self._on_body(data)
            elif (event := relay.write(frame)) is not None:
                self._on_relay(event)
        elif state is State.HEAD:
            self._on_head(data)
        elif state in (State.WHOLE, State.EVENTS, State.TAIL):
            self._on_body(data)
        else:
            self.abort()  # bytes that nobody asked for

    # Reading

    def _on_head(self, data: bytes) -> None:
        try:
            rest = self._reader.read_head(data)
        except RejectedReply as rejected:
            self._reject(rejected)
            return
        if rest is not None:
            is_stream = self._filter is not None and self._reader.head.is_event_stream
            self._move(Event.STREAM_HEAD if is_stream else Event.WHOLE_HEAD)
            if rest or self._reader.body.finished:
                self._on_body(rest)

    def _on_body(self, data: bytes) -> None:
        """Process it at once if that is sure to be quick."""
        if len(data) <= EAGER_BYTES or (self.state is State.WHOLE and not isinstance(self._reader.body, ChunkedReader)):
            self._process(data)
            return
        self._backlog = data
        self._backlog_at = 0
        if self._transport is not None:
            self._transport.pause_reading()
        self._scheduler.add(self.process_slice)

    def process_slice(self) -> bool:
        """Process one slice of the backlog. True if more is left."""
        if self._is_paused or not self._backlog:
            return False
        at = self._backlog_at
        piece = self._backlog[at : at + SLICE_BYTES]
        self._backlog_at = at + len(piece)
        if self._backlog_at >= len(self._backlog):
            self._backlog = b""
        self._process(piece)
        if self._backlog:
            return not self._is_paused
        self._read_on()
        return False

    def _process(self, data: bytes) -> None:
        reader = self._reader
        try:
            payload, framing_error = reader.body.feed(data)
            if payload and self.state is State.WHOLE:
                reader.hold(payload)
            elif payload and self.state is not State.TAIL and (events := reader.whole_events(payload)):
                self._on_events(events)
        except RejectedReply as rejected:
            self._reject(rejected)
        except MemoryFull as full:
            self._fail(full)
        else:
            if framing_error is not None:
                self._reject(RejectedReply("framing", WorkerDied("the worker broke its framing")))
            elif reader.body.finished:
                self._on_body_end()

    def _on_events(self, events: bytes) -> None:
        reader, stream_filter = self._reader, self._filter
        if stream_filter is None:
            return
        passed = stream_filter.take(events)
        if self._relay is not None:
            self._on_relay(self._relay.send(passed))
        elif passed:
            if not reader.keep_events(passed):
                self._pause()
            self._wake()
        elif stream_filter.error and not reader.pieces:
            self._answer_error(stream_filter.error)
        elif stream_filter.failed:
            self._on_stream_failure("the stream was closed before it began")

    def _answer_error(self, event: bytes) -> None:
        """A stream that begins with an error is a reply of that error, whose status says whose fault it is."""
        reader = self._reader
        reader.head.status, body = read_error(event)
        reader.head.headers = {b"content-type": b"application/json"}
        reader.pieces.append(body)
        self._close(Event.END)
        self._wake()

    def _on_relay(self, event: RelayEvent | None) -> None:
        if event is RelayEvent.FAILED:
            self._on_stream_failure("the worker broke the stream off")
        elif event is RelayEvent.FULL:
            self._pause()
        elif event is RelayEvent.DONE:
            self._move(Event.CLOSING_EVENT)
        elif event is RelayEvent.CLIENT_GONE:
            self.abort()  # its handler is about to be cancelled
        if event is not None:
            self._wake()

    def _on_stream_failure(self, message: str) -> None:
        if self._filter is not None and self._filter.error:
            self._fail(WorkerErred(message))
        else:
            self._reject(RejectedReply("stream", WorkerDied(message)))

    def _on_body_end(self) -> None:
        if self.state is State.RELAY or (self.state is State.EVENTS and not self._reader.pieces):
            self._reject(RejectedReply("stream", WorkerDied("the stream ended without its closing event")))
        elif self.state in (State.WHOLE, State.TAIL):
            is_released = self.state is State.TAIL and self._relay is None
            if self._reader.head.keeps_alive and not self._reader.body.surplus and not self._backlog:
                self._move(Event.END_CLEAN)
                self._silence.due_at = inf
                if is_released:
                    self._on_idle(self)
            else:
                self._close(Event.END)
            self._wake()

    # Pauses and ends

    def _pause(self) -> None:
        """Until the owner goes on: with ``start_relay``, or ``resume``."""
        self._is_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Process the backlog first, and then read, unless the stream waits for its owner."""
        if self._is_paused:
            return
        if self._backlog:
            self._scheduler.add(self.process_slice)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state][event]

    def _close(self, event: Event) -> None:
        self._move(event)
        self._silence.due_at = inf
        self._backlog = b""
        if self._transport is not None:
            self._transport.abort()

    def _reject(self, rejected: RejectedReply) -> None:
        self._rejected_replies[rejected.kind] += 1
        self._fail(rejected.error)

    def _fail(self, error: AttemptFailed | MemoryFull) -> None:
        if self.error is None:
            self.error = error
        self._reader.drop()  # at once: the error may live on, and other replies must not fail for what this one held
        self._close(Event.FAIL)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wait(self) -> asyncio.Future[None]:
        """One owner waits at a time. A future that was cancelled is never woken."""
        self._waiter = self._loop.create_future()
        return self._waiter


_EARLY_ENDS = {State.FAILED: RelayEvent.FAILED, State.ABORTED: RelayEvent.CLIENT_GONE}
