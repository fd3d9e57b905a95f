"""The load: a fixed number of keep-alive connections, each with one request at a time.

Every answer is checked: status 200, framing complete, and the marks of a whole completion. An answer that fails a
check, and a connection that breaks, is counted as a failure and never as a request.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from bench.cpu.bodies import Conversation
from bench.cpu.replies import EXTRA_EVENTS

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
END = b"\r\n0\r\n\r\n"
FINISHED = b'"finish_reason":"stop"'


@dataclass(slots=True)
class Tally:
    """What a load has seen so far. ``events`` counts SSE events as they arrive, whole answers or not."""

    requests: int = 0
    failures: int = 0
    events: int = 0
    latencies_s: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def fail(self, why: str) -> None:
        self.failures += 1
        if len(self.complaints) < 5:
            self.complaints.append(why)


class ClientConnection(asyncio.Protocol):
    """One request at a time; ``next_request`` gives the bytes to send, or None when the load is over.

    The next one follows ``period_s`` after the last was sent, or when that was answered, whichever is later.
    """

    def __init__(
        self, next_request: Callable[[], bytes | None], stream_events: int, period_s: float, tally: Tally
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._period_s = period_s
        self._next_request = next_request
        self._stream_events = stream_events
        self._tally = tally
        self._transport: asyncio.WriteTransport | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._needed: int | None = None
        self._asked_at = 0.0
        self._due = 0.0
        self.done: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one by its methods, not by its class.
        self._transport = cast(asyncio.WriteTransport, transport)

    def ask(self) -> None:
        request = self._next_request()
        if request is None or self._transport is None:
            self._finish()
            return
        self._held.clear()
        self._held_bytes = 0
        self._needed = None
        self._asked_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._stream_events:
            self._tally.events += data.count(b"data: ")
        if self._needed is None and not self._read_head():
            return
        if self._needed == -1:
            # A last chunk that came in pieces is looked for in the last reads together.
            tail = data if len(data) >= len(END) else b"".join(self._held[-len(END) :])
            if tail.endswith(END):
                self._answered()
        elif self._needed is not None and self._held_bytes >= self._needed:
            self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.done.done():
            self._tally.fail(f"connection lost: {exc!r}")
            self._finish()

    def _read_head(self) -> bool:
        """Learns how long the answer is: -1 for chunked. False while the head is incomplete."""
        seen = b"".join(self._held)
        end = seen.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = seen[: end + 2]
        length = CONTENT_LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200") or CLOSES.search(head) or not (length or CHUNKED.search(head)):
            self._tally.fail(seen[:300].decode("latin-1"))
            self._finish()
            return False
        self._needed = end + 4 + int(length[1]) if length else -1
        return True

    def _answered(self) -> None:
        elapsed_s = time.perf_counter() - self._asked_at
        why = self._complaint(b"".join(self._held))
        if why:
            self._tally.fail(why)
        else:
            self._tally.requests += 1
            self._tally.latencies_s.append(elapsed_s)
        now = self._loop.time()
        self._due = max(now, self._due + self._period_s) if self._due else now + self._period_s
        if self._due > now:
            self._loop.call_at(self._due, self.ask)
        else:
            self.ask()

    def _complaint(self, answer: bytes) -> str:
        """Why the answer is not whole; empty when it is."""
        if FINISHED not in answer:
            return "no finish_reason: " + answer[-200:].decode("latin-1")
        if not self._stream_events:
            return ""
        expected = self._stream_events + EXTRA_EVENTS
        events = answer.count(b"data: {") + answer.count(b"data: [DONE]\n\n")
        return "" if events == expected else f"{events} events where {expected} were sent"

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        if self._transport is not None:
            self._transport.close()


class Load:
    """Runs ``connections`` of them against ``ports`` in turn; the caller reads ``tally`` whenever it likes."""

    def __init__(
        self,
        ports: Sequence[int],
        conversations: Sequence[Conversation],
        *,
        stream_events: int = 0,
        period_s: float = 0.0,
    ) -> None:
        self.tally = Tally()
        self._ports = ports
        self._conversations = conversations
        self._stream_events = stream_events
        self._period_s = period_s
        self._sent = 0
        self._stopped = False
        self._limit: int | None = None
        self._open: list[ClientConnection] = []

    async def connect(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for index in range(connections):
            port = self._ports[index % len(self._ports)]
            _, protocol = await loop.create_connection(
                lambda: ClientConnection(self._take, self._stream_events, self._period_s, self.tally), "127.0.0.1", port
            )
            self._open.append(protocol)

    async def start(self, spread_s: float = 0.0, limit: int | None = None) -> None:
        """Send the first requests, ``spread_s`` apart; stop by itself after ``limit`` requests."""
        self._limit = limit
        for connection in self._open:
            connection.ask()
            if spread_s:
                await asyncio.sleep(spread_s)

    async def stop(self, timeout_s: float = 30.0) -> None:
        """Let what is under way be answered."""
        self._stopped = True
        done, pending = await asyncio.wait([connection.done for connection in self._open], timeout=timeout_s)
        for _ in pending:
            self.tally.fail(f"no answer within {timeout_s} s; {len(done)} other connections ended")

    def _take(self) -> bytes | None:
        if self._stopped or (self._limit is not None and self._sent >= self._limit):
            return None
        number = self._sent
        self._sent += 1
        return self._conversations[number % len(self._conversations)].request(number, self._stream_events)
