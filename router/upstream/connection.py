"""One keep-alive connection to a worker, and the splice: a stream's bytes go to the client as they are read.

    IDLE ──ask──► HEAD ──► WHOLE ──► IDLE                       a reply that is held until it is complete
                    └────► EVENTS ──flow──► FLOW ──► TAIL ──► IDLE    a stream; in TAIL the client has all of it

In FLOW a read that is one whole frame of whole events, with nothing in it that must be looked at, is written to the client
as it came: no task switch, no copy, no new framing. Everything else is walked: frames undone, events made whole, the usage
chunk hidden, the end judged. A byte of an incomplete event is never forwarded, nor the worker's own last chunk. Any error
makes the connection unusable, and ``release`` aborts what is not idle and clean.

A worker may be hostile or broken: whatever it sends, what is held of it is bounded and counted, each byte is looked at a fixed
number of times, and a large read is taken in slices (see ``shares``).
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from router.core.fleet.patience import Signs, Silence, may_wait_s
from router.core.request.attempt import (
    AttemptFailed,
    ReplyTooLarge,
    WorkerDied,
    WorkerErred,
    WorkerHungUp,
    WorkerSilent,
    WorkerSlow,
)
from router.core.request.reply import Reply
from router.core.tenants.memory import REPLY, UNCOUNTED_BYTES, Holding, MemoryFull
from router.runtime.freed_memory import untie_transport
from router.upstream.shares import SHARE_BYTES, Shares
from router.wire.dialects import read_error
from router.wire.events import take_events
from router.wire.framing import CHUNK_SIZE, LAST_CHUNK, BodyReader, ChunkedReader, LengthReader, UntilClosed, frame
from router.wire.reply_head import MAX_HEAD_BYTES, BadHead, ReplyHead, body_reader, parse_head
from router.wire.sse import Filter

SMALL_BODY_BYTES = 16384
"""Up to here a copy is cheaper than a second buffer for the kernel."""

KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 11_000))
"""A host that vanishes sends no FIN: its silence is noticed after eleven seconds. Where the system knows the options."""

GIVE_UP_S, GIVE_UP_WHOLE_S = 3.0, 30.0
"""Silence, of a stream and of an answer that is held, after which a worker that answers no probes either is given up. One
that is too busy for probes may still be at work on an answer of which nothing is seen before its end."""

EAGER_BYTES = 4096
"""A read up to here is taken at once: a chunk or a dozen. A larger one waits for its share of the loop."""

LARGE_BYTES = 64 << 10
"""Of what is not forwarded yet: beyond it an event counts as memory, and an early stream is not read on."""

PIECE_BYTES = 1 << 20
"""Of a whole reply: the allocator gives pieces of this size back to the system at once."""

MAX_INTERIM_HEADS = 16

BREACHES = ("head", "framing", "stream", "size", "probe")
"""What of a worker's answer was not as it must be. Label values of a metric."""

TAIL_S = 1.0
"""How long a worker may take for its last chunk, which usually is in the read that closed the stream."""


class Sink(Protocol):
    """Where a stream goes: one client's connection."""

    is_chunked: bool
    """False for an HTTP/1.0 client, which gets bare events and then the end of the connection."""

    def write(self, data: bytes) -> None: ...

    def write_last(self, data: bytes) -> None:
        """The end of the body; nothing may follow."""
        ...

    def is_closing(self) -> bool: ...

    def is_full(self) -> bool: ...


class RelayEvent(Enum):
    """Why a stream needs its owner: it ended well, it failed, the client is gone, or the client reads too slowly."""

    DONE = 0
    FAILED = 1
    CLIENT_GONE = 2
    FULL = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and seconds."""

    max_reply_bytes: int
    max_event_bytes: int
    first_event_s: float
    event_gap_s: float
    answer_s: float
    silence_s: float
    """The longest silence that is waited for where the worker shows that it is at work."""


RECEIVE_BUFFER_BYTES = 64 << 10
"""Of the kernel, which doubles it. One read takes all of it, and is what a client that stops reading leaves in our memory."""


class ConnectionState(Enum):
    IDLE = 0
    HEAD = 1
    WHOLE = 2
    EVENTS = 3
    FLOW = 4
    TAIL = 5
    CLOSED = 6


class WorkerConnection(asyncio.Protocol):
    """Owned by one request at a time, from ``ask`` to ``release``."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        on_idle: Callable[[WorkerConnection], None],
        shares: Shares,
        breaches: Counter[str],
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._on_idle = on_idle
        self._shares = shares
        self._breaches = breaches
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._head = ReplyHead()
        self._body: BodyReader = LengthReader(0)
        self._watch: Filter | None = None
        self._sink: Sink | None = None
        self._observe_gap: Callable[[float], None] | None = None
        self._held = bytearray()
        """What is not whole yet: a piece of the head, of an event, or the end of a reply."""
        self._pieces: list[bytes] = []
        self._piece_bytes = 0
        self._max_reply_bytes = 0
        self._memory: Holding | None = None
        self._is_counted = False
        """An event that is not whole yet is counted as memory."""
        self._has_answered = False
        self._interim_heads = 0
        self._backlog = b""
        """A read that waits for its share of the loop, or for its client; what was taken of it ends at ``_taken_bytes``."""
        self._taken_bytes = 0
        self._is_paused = False
        self._is_delivered = False
        self._read_at = 0.0
        self._answer_within_s = 0.0
        self._may_wait = False
        self.state = ConnectionState.IDLE
        self.error: AttemptFailed | MemoryFull | None = None
        self.deadline = float("inf")
        """On the loop's clock; whoever sweeps calls ``expire`` behind it."""
        self.idle_since = 0.0
        self.chunks = 0

    # What the owner calls

    @property
    def is_usable(self) -> bool:
        return self.state is ConnectionState.IDLE and self._transport is not None and not self._transport.is_closing()

    @property
    def is_closed(self) -> bool:
        """True once the transport is gone, whatever state it was in."""
        return self.state is ConnectionState.CLOSED and self._transport is None

    def is_overdue(self, now: float) -> bool:
        """The worker is silent beyond its deadline, and waited for."""
        return self._is_awaited and now - self._read_at > self._allowed_s

    @property
    def _is_awaited(self) -> bool:
        return (
            self.state in (ConnectionState.HEAD, ConnectionState.WHOLE, ConnectionState.EVENTS, ConnectionState.FLOW)
            and not self._is_paused
        )

    @property
    def _allowed_s(self) -> float:
        """How long the worker may be silent, if nothing shows that it is at work."""
        return self._limits.event_gap_s if self.state is ConnectionState.FLOW else self._answer_within_s

    @property
    def has_answered(self) -> bool:
        """True once any byte of the reply came."""
        return self._has_answered

    def ask(
        self,
        head: bytes,
        body: bytes,
        watch: Filter | None,
        within_s: float | None = None,
        *,
        may_wait: bool = False,
        memory: Holding | None = None,
        max_reply_bytes: int | None = None,
    ) -> None:
        """Send a request; ``watch`` for one that asks for a stream. ``within_s`` and ``max_reply_bytes`` shorten the wait for
        its answer or first event, and the largest answer. ``may_wait``: beyond that while the worker shows that it is at work.
        ``memory`` grows with what is held of the answer. Raises WorkerHungUp on a closed connection."""
        transport = self._transport
        if transport is None or not self.is_usable:
            raise WorkerHungUp("the connection is closed")
        self._head = ReplyHead()
        self._watch = watch
        self._memory = memory
        self._max_reply_bytes = self._limits.max_reply_bytes if max_reply_bytes is None else max_reply_bytes
        self._held.clear()
        self._pieces.clear()
        self._is_counted = self._is_paused = self._has_answered = False
        self._piece_bytes = self.chunks = self._interim_heads = 0
        self.state = ConnectionState.HEAD
        limit_s = self._limits.answer_s if watch is None else self._limits.first_event_s
        self._answer_within_s = limit_s if within_s is None else min(limit_s, within_s)
        self._may_wait = may_wait
        self._read_at = now = self._loop.time()
        self.deadline = now + self._answer_within_s
        if len(body) <= SMALL_BODY_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    async def reply(self) -> Reply:
        """A whole reply, or a stream of which the first event is here. Raises AttemptFailed, MemoryFull."""
        while self.state in (ConnectionState.HEAD, ConnectionState.WHOLE) or (
            self.state is ConnectionState.EVENTS and not self._pieces
        ):
            await self._wait()
        if self.error is not None:
            raise self.error
        is_stream = self.state is ConnectionState.EVENTS
        content = b"" if is_stream else self._take_whole()
        return Reply(self._head.status, self._head.headers, content, is_stream)

    def _take_whole(self) -> bytes | tuple[bytes, ...]:
        """The reply's body, which is kept here no longer."""
        if self._held:
            self._pieces.append(bytes(self._held))
            self._held.clear()
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces) if self._piece_bytes <= LARGE_BYTES else tuple(pieces)

    def flow(self, sink: Sink, head: bytes, observe_gap: Callable[[float], None]) -> None:
        """Begin to splice: ``head`` and the events that are here leave in one write."""
        self._sink = sink
        self._observe_gap = observe_gap
        self.state = ConnectionState.FLOW
        was_paused = self._is_paused
        self._is_paused = self._is_delivered = False
        self._touch(self._loop.time())
        events = b"".join(self._pieces)
        self._pieces.clear()
        self._send(events, head)
        if self._body.finished and self.state is not ConnectionState.CLOSED:
            self._on_body_end()
        if was_paused:
            self._read_on()

    async def turn(self) -> RelayEvent:
        """Wait until the stream needs its owner."""
        while self.state is ConnectionState.FLOW and not self._is_paused:
            await self._wait()
        if self.state is ConnectionState.FLOW:
            return RelayEvent.FULL
        if self.state is ConnectionState.CLOSED and not self._is_delivered:
            return RelayEvent.FAILED if self.error is not None else RelayEvent.CLIENT_GONE
        return RelayEvent.DONE

    def resume(self) -> None:
        """The client reads again."""
        self._is_paused = False
        self._touch(self._loop.time())
        self._read_on()

    def release(self) -> None:
        """Give the connection back: it is kept if it is clean, else aborted, which stops the worker's work at once."""
        self._sink = self._observe_gap = self._memory = None
        self.error = None  # whose traceback holds this object
        self._pieces.clear()
        if self.state is ConnectionState.IDLE:
            self._on_idle(self)
        elif self.state is ConnectionState.TAIL:
            self.deadline = self._loop.time() + TAIL_S
        else:
            self.abort()

    def abort(self) -> None:
        self.state = ConnectionState.CLOSED
        self.deadline = float("inf")
        self._backlog = b""
        if self._transport is not None:
            self._transport.abort()

    def expire(self, signs: Signs | None = None) -> None:
        """The deadline has passed; a paused stream waits for its client, and that wait is the owner's to end. ``signs``: of
        the worker's work. While there are some the deadline moves on, up to the longest silence."""
        if self.state is ConnectionState.TAIL:
            self.abort()
            return
        if self._is_paused:
            return
        limits, now = self._limits, self._loop.time()
        lasted_s = now - self._read_at
        queued_s = 0.0 if self.state is ConnectionState.FLOW else max(limits.first_event_s, self._answer_within_s)
        more_s = may_wait_s(Silence(lasted_s, self._allowed_s, queued_s), signs)
        left_s = limits.silence_s - lasted_s if self._may_wait else 0.0
        if more_s <= 0.0:
            self._fail(WorkerSilent("the worker sent nothing in time"))
        elif left_s <= 0.0:
            self._fail(WorkerSlow("the worker is at work, and sent nothing in time"))
        else:
            self.deadline = now + min(more_s, left_s)

    def abort_unresponsive(self) -> None:
        """The worker answers no probes: whoever has heard nothing of it for a while need not wait for a deadline."""
        patience_s = GIVE_UP_WHOLE_S if self._watch is None else GIVE_UP_S
        if self._is_awaited and self._loop.time() - self._read_at >= patience_s:
            self._fail(WorkerDied("the worker fell silent, and answers no probes"))

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a socket's transport reads and writes
        if (sock := transport.get_extra_info("socket")) is not None:
            _notice_silence(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    @property
    def peer_host(self) -> str:
        """The address that it is connected to."""
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else ""

    def connection_lost(self, exc: Exception | None) -> None:
        untie_transport(self._transport)
        self._transport = None
        if self.state in (ConnectionState.IDLE, ConnectionState.TAIL, ConnectionState.CLOSED):
            self.state = ConnectionState.CLOSED
        else:
            self._fail(WorkerHungUp("the worker reset the connection" if exc else "the worker closed the connection"))

    def eof_received(self) -> bool:
        if self.state is ConnectionState.WHOLE and isinstance(self._body, UntilClosed):
            self.state = ConnectionState.CLOSED
            self._wake()
        return False

    def data_received(self, data: bytes) -> None:
        state = self.state
        if self._backlog:
            self._backlog = self._backlog[self._taken_bytes :] + data
            self._taken_bytes = 0
        elif state is ConnectionState.FLOW:
            self._on_flow(data)
        elif state is ConnectionState.HEAD:
            self._on_head(data)
        elif state in (ConnectionState.WHOLE, ConnectionState.EVENTS, ConnectionState.TAIL):
            self._on_body(data)
        else:
            self.abort()  # bytes that nobody asked for

    def take_share(self) -> bool:
        """What of the backlog is taken while others wait. True if more is left."""
        if self._is_paused or not self._backlog:
            return False
        at = self._taken_bytes
        piece = self._backlog[at : at + SHARE_BYTES]
        self._taken_bytes = at + len(piece)
        if self._taken_bytes >= len(self._backlog):
            self._backlog = b""
        self._take(piece)
        if self._backlog:
            return not self._is_paused
        self._read_on()
        return False

    # The splice

    def _on_flow(self, data: bytes) -> None:
        now = self._loop.time()
        self._observe_gap(now - self._read_at)  # type: ignore[misc]  # set by flow, unset by release
        self._read_at = now
        self.deadline = now + self._limits.event_gap_s
        self.chunks += 1
        if (
            data.endswith(b"\n\n\r\n")
            and not self._held
            and self._body.at_boundary
            and self._watch.is_plain(data)  # type: ignore[union-attr]  # there is one in FLOW
            and (size := CHUNK_SIZE.match(data)) is not None
            and size.end() + int(size[1], 16) + 2 == len(data)
            and self._sink.is_chunked  # type: ignore[union-attr]
        ):
            self._write(self._watch.pass_frame(data, size.end()))  # type: ignore[union-attr]
        else:
            self._on_body(data)

    def _touch(self, now: float) -> None:
        self._read_at = now
        self.deadline = now + self._limits.event_gap_s

    def _send(self, events: bytes, head: bytes = b"") -> None:
        """Whole events to the client in one frame of our own, with what ends the stream if it has ended."""
        sink, watch = self._sink, self._watch
        if sink is None or watch is None:
            return
        out = head
        if events:
            out += frame(events) if sink.is_chunked else events
        if watch.closed:
            out += LAST_CHUNK if sink.is_chunked else b""
        if out:
            self._write(out, is_last=watch.closed)
        if self.state is not ConnectionState.FLOW:
            return
        if watch.closed:
            self.state = ConnectionState.TAIL
            self._is_delivered = True
            self._wake()
        elif watch.failed:
            self._fail_stream(watch, "the worker broke the stream off")

    def _fail_stream(self, watch: Filter, message: str) -> None:
        if watch.error:
            self._fail(WorkerErred(message))
        else:
            self._breach("stream", WorkerDied(message))

    def _write(self, out: bytes, *, is_last: bool = False) -> None:
        sink = self._sink
        if sink is None or sink.is_closing():
            self.abort()  # the client is gone: its handler is about to be cancelled
            self._wake()
            return
        if is_last:
            sink.write_last(out)
            return
        sink.write(out)
        if sink.is_full():
            self._pause()
            self._wake()

    def _pause(self) -> None:
        """Until the owner goes on: with ``flow``, or ``resume``."""
        self._is_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Unless the owner is waited for: first what was read, then what comes."""
        if self._is_paused:
            return
        if self._backlog:
            self._shares.add(self)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # Heads and bodies

    def _on_head(self, data: bytes) -> None:
        self._has_answered = True
        if self._held:
            data = bytes(self._held) + data
            self._held.clear()
        while (end := data.find(b"\r\n\r\n") + 4) >= 4:
            try:
                head = parse_head(data[:end])
                body = body_reader(head)
            except BadHead:
                self._breach("head", WorkerDied("the worker sent a bad response head"))
                return
            data = data[end:]
            if not head.is_interim:
                self._on_final_head(head, body, data)
                return
            self._interim_heads += 1
            if self._interim_heads > MAX_INTERIM_HEADS:
                self._breach("head", WorkerDied("the worker sent one interim head after another"))
                return
        self._held += data
        if len(data) > MAX_HEAD_BYTES or not b"HTTP/1.".startswith(data[:7]):
            self._breach("head", WorkerDied("the worker does not speak HTTP"))

    def _on_final_head(self, head: ReplyHead, body: BodyReader, rest: bytes) -> None:
        self._head = head
        self._body = body
        self.state = (
            ConnectionState.EVENTS if self._watch is not None and head.is_event_stream else ConnectionState.WHOLE
        )
        if rest or body.finished:
            self._on_body(rest)

    def _on_body(self, data: bytes) -> None:
        """At once, if that is sure to be quick."""
        if len(data) <= EAGER_BYTES or (
            self.state is ConnectionState.WHOLE and not isinstance(self._body, ChunkedReader)
        ):
            self._take(data)
            return
        self._backlog = data
        self._taken_bytes = 0
        if self._transport is not None:
            self._transport.pause_reading()
        self._shares.add(self)

    def _take(self, data: bytes) -> None:
        payload, error = self._body.feed(data)
        if payload:
            if self.state is ConnectionState.WHOLE:
                self._hold(payload)
            elif self.state in (ConnectionState.EVENTS, ConnectionState.FLOW):
                self._on_events(payload)
        if error is not None:
            self._breach("framing", WorkerDied("the worker broke its framing"))
        elif self._body.finished and self.state is not ConnectionState.CLOSED:
            self._on_body_end()

    def _hold(self, payload: bytes) -> None:
        """Pieces are put together: small ones would take many times their bytes, and what is not large stays with the process
        when it is let go."""
        self._piece_bytes += len(payload)
        if self._piece_bytes > self._max_reply_bytes:
            self._breach("size", ReplyTooLarge("the reply is larger than may be held"))
            return
        if self._memory is not None and self._piece_bytes > UNCOUNTED_BYTES:
            try:
                self._memory.resize(REPLY, self._piece_bytes)
            except MemoryFull as full:
                self._fail(full)
                return
        if not self._held and not self._pieces:
            self._pieces.append(payload)
            return
        self._held += payload
        if len(self._held) >= PIECE_BYTES:
            self._pieces.append(bytes(self._held))
            self._held.clear()

    def _on_events(self, payload: bytes) -> None:
        watch = self._watch
        if watch is None:
            return
        whole = take_events(self._held, payload)
        if len(self._held) > self._limits.max_event_bytes:
            self._breach("size", ReplyTooLarge("an event is larger than may be held"))
            return
        if len(self._held) > LARGE_BYTES or self._is_counted:
            self._count_event()
        if not whole or self.state is ConnectionState.CLOSED:
            return
        seen = watch.take(whole)
        if self.state is ConnectionState.FLOW:
            self._send(seen)
        elif seen:
            self._pieces.append(seen)
            self._piece_bytes += len(seen)
            if self._piece_bytes > LARGE_BYTES:
                self._pause()
            self._wake()
        elif watch.error and not self._pieces:
            self._answer_error(watch.error)
        elif watch.failed:
            self._fail_stream(watch, "the stream was closed before it began")

    def _count_event(self) -> None:
        """A large event that is not whole is memory, too."""
        self._is_counted = len(self._held) > LARGE_BYTES
        if self._memory is not None:
            try:
                self._memory.resize(REPLY, len(self._held) if self._is_counted else 0)
            except MemoryFull as full:
                self._fail(full)

    def _answer_error(self, event: bytes) -> None:
        """A stream that begins with an error is an answer of that error: whose fault it is, its status says."""
        self._head.status, body = read_error(event)
        self._head.headers = {b"content-type": b"application/json"}
        self._pieces.append(body)
        self.abort()
        self._wake()

    def _on_body_end(self) -> None:
        if self.state is ConnectionState.FLOW or (self.state is ConnectionState.EVENTS and not self._pieces):
            self._breach("stream", WorkerDied("the stream ended without its closing event"))
            return
        if self.state is ConnectionState.EVENTS:
            return  # flow, called in a moment, comes back here
        is_clean = self._head.keeps_alive and not self._body.surplus and not self._backlog
        is_released = self.state is ConnectionState.TAIL and self._sink is None
        self.state = ConnectionState.IDLE if is_clean else ConnectionState.CLOSED
        self.deadline = float("inf")
        self._wake()
        if not is_clean and self._transport is not None:
            self._transport.abort()
        elif is_released:
            self._on_idle(self)

    # Waiting

    def _breach(self, kind: str, error: AttemptFailed) -> None:
        self._breaches[kind] += 1
        self._fail(error)

    def _fail(self, error: AttemptFailed | MemoryFull) -> None:
        if self.error is None:
            self.error = error
        self._pieces.clear()  # the error's traceback may keep this object for a while
        if self._memory is not None:
            self._memory.resize(REPLY, 0)  # at once: answers that grow beside this one shall not fail for what it held
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wait(self) -> asyncio.Future[None]:
        """One owner waits at a time; a future that was cancelled is never woken."""
        self._waiter = self._loop.create_future()
        return self._waiter


def _notice_silence(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
