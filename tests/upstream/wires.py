"""A connection's two sides without sockets: what the worker sends is fed in, what leaves is kept."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import cast

from router.config.workers import TimeoutsConfig
from router.core.request.request import NO_TENANT
from router.core.tenants.memory import Holding, MemoryBudget
from router.proxy.ports import Client
from router.upstream.connection import WorkerConnection
from router.upstream.read_scheduler import ReadScheduler
from router.upstream.relay import Relay
from router.wire.framing import ChunkedReader

LIMITS = TimeoutsConfig(
    max_reply_bytes=2000, max_event_bytes=1000, first_event_s=30.0, event_gap_s=5.0, answer_s=100.0, silence_s=50.0
)


def a_holding(max_bytes: int = 1 << 30) -> Holding:
    return MemoryBudget(max_bytes).hold(NO_TENANT)


class Clock:
    """What a connection asks of its loop: the time, which only a test moves, futures, and callbacks, which a test runs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._soon: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def run(self) -> None:
        """All that is due, and what that makes due."""
        while self._soon:
            self._soon.popleft()()

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.reads = True
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reads

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class FakeClient:
    """Where a stream goes. ``is_full_behind``: bytes after which it has not read on."""

    def __init__(self, *, is_chunked: bool = True, is_full_behind: int | None = None) -> None:
        self.is_chunked = is_chunked
        self.is_full_behind = is_full_behind
        self.writes: list[bytes] = []
        self.gone = False
        self.was_ended = False
        self.memory = a_holding()

    def write(self, data: bytes) -> None:
        assert not self.gone
        assert not self.was_ended
        self.writes.append(data)

    def write_last(self, data: bytes) -> None:
        self.write(data)
        self.was_ended = True

    def is_closing(self) -> bool:
        return self.gone

    def is_full(self) -> bool:
        return self.is_full_behind is not None and len(self.sent) > self.is_full_behind

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    @property
    def events(self) -> bytes:
        """The payload so far; fails where what was sent is not whole frames."""
        if not self.is_chunked:
            return self.sent
        reader = ChunkedReader()
        payload, error = reader.feed(self.sent)
        assert error is None
        assert reader.at_boundary or reader.finished
        assert not reader.surplus
        return payload

    @property
    def has_ended(self) -> bool:
        """True where the body has its last chunk."""
        return self.sent.endswith(b"0\r\n\r\n")


class Wire:
    """One connection, its transport and whether it was given back to the pool."""

    def __init__(self, limits: TimeoutsConfig = LIMITS) -> None:
        self.clock = Clock()
        self.transport = FakeTransport()
        self.idled: list[WorkerConnection] = []
        loop = cast(asyncio.AbstractEventLoop, self.clock)
        self.scheduler = ReadScheduler(loop, self.clock.time)
        self.rejected_replies: Counter[str] = Counter()
        self.connection = WorkerConnection(loop, limits, self.idled.append, self.scheduler, self.rejected_replies)
        self.connection.connection_made(self.transport)

    def feed(self, *pieces: bytes) -> None:
        """As a loop would: nothing is read from a transport that is closing."""
        for piece in pieces:
            if not self.transport.closing:
                self.connection.data_received(piece)
                self.clock.run()

    def relay_to(
        self, client: FakeClient, head: bytes = b"", observe_gap: Callable[[float], None] = lambda _gap: None
    ) -> Relay:
        return self.connection.start_relay(cast(Client, client), head, observe_gap)

    def lose(self, error: Exception | None = None) -> None:
        """The worker's side closed: the end of what it sends, and then the connection's."""
        if not self.transport.closing and error is None:
            self.connection.eof_received()
        self.transport.closing = True
        self.connection.connection_lost(error)
