"""Streamed POSTs, so cheap that the load generator does not distort the measurement.

The client searches a reply's bytes for a few marks as they arrive; it neither keeps nor decodes them, and no task wakes
before the end. A stream counts as answered if it has a first choice, a finish_reason `stop` or `length`, and `[DONE]`.

Must never wait for one request before it sends another: it opens connections as needed, without a bound.
"""

import asyncio
import re
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from router.replay.trace import ReplayError

_FIRST_CHOICE = b'"delta"'
_FINISH = re.compile(rb'"finish_reason":\s*"(\w+)"')
_ERROR_EVENT = re.compile(rb'(?:^|\n)data:\s*\{"error"')
_ERROR_CODE = re.compile(rb'"code":\s*"([a-z_]+)"')
_DONE = b"data: [DONE]"
_OVERLAP_BYTES = 64  # longer than any mark, so that a mark split over two reads is found
_MAX_IDLE_S = 2.0  # shorter than every server's keep-alive, so that servers rarely close a connection during its reuse
_CONNECT_S = 30.0
_CONTROLS = bytes(range(0x20))
_FINE_ENDS = frozenset({b"length", b"stop"})

Clock = Callable[[], float]
"""Seconds. Not the event loop's time, which may stand still while the loop is busy."""


@dataclass(slots=True)
class Outcome:
    """The result of one request. Times are the clock's, 0 for a phase that it never reached. error: its kind, or None."""

    sent_at: float = 0.0
    first_event_at: float = 0.0
    ended_at: float = 0.0
    status: int = 0
    worker: str = ""
    error: str | None = None


class _Connection(asyncio.Protocol):
    """One connection that carries one request at a time."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reply: asyncio.Future[Outcome] | None = None
        self._outcome = Outcome()
        self._overlap = b""
        self._finish = b""
        self._done = False
        self.is_open = False
        self.idle_since = 0.0

    def send(self, request: list[bytes]) -> asyncio.Future[Outcome]:
        """Send a request. The future resolves at the reply's last byte or the loss of the connection."""
        transport = self._transport
        assert transport is not None  # noqa: S101 - the loop calls connection_made before any send
        self._outcome = Outcome(sent_at=self._now())
        self._overlap, self._finish, self._done = b"", b"", False
        self._reply = asyncio.get_running_loop().create_future()
        transport.writelines(request)
        return self._reply

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # The loop's calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport does not inherit from it
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("not_http")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's name
        self.is_open = False
        self._end("truncated" if self._outcome.status else "no_reply")

    # The parser's calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-warmroute-worker":
            self._outcome.worker = value.decode("ascii", "replace")

    def on_headers_complete(self) -> None:
        self._outcome.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        outcome = self._outcome
        seen = self._overlap + data
        if outcome.status != 200:
            self._overlap = seen[:4096]
            return
        self._overlap = seen[-_OVERLAP_BYTES:]
        if not outcome.first_event_at and _FIRST_CHOICE in seen:
            outcome.first_event_at = self._now()
        if outcome.error is None and _ERROR_EVENT.search(seen):
            outcome.error = "error_event"
        if not self._finish and (finish := _FINISH.search(seen)):
            self._finish = finish[1]
        if not self._done and _DONE in seen:
            self._done = True

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self.idle_since = self._now()
        self._end(self._judge())

    def _judge(self) -> str | None:
        outcome = self._outcome
        if outcome.status != 200:
            code = _ERROR_CODE.search(self._overlap)
            return f"status_{outcome.status}" + (f" {code[1].decode()}" if code else "")
        if not self._finish:
            return "no_finish_reason"
        if self._finish not in _FINE_ENDS:
            return f"finish_{self._finish.decode('ascii', 'replace')}"
        if not self._done:
            return "no_done"
        return None if outcome.first_event_at else "no_content"

    def _end(self, error: str | None) -> None:
        reply, self._reply = self._reply, None
        if reply is None or reply.done():
            return
        self._outcome.ended_at = self._now()
        self._outcome.error = self._outcome.error or error
        reply.set_result(self._outcome)


class Client:
    """POSTs to one path of one server. Close it when done."""

    def __init__(self, url: str, path: str, headers: dict[str, str], clock: Clock = time.monotonic) -> None:
        """Raises ReplayError if `url` is not an http or https origin with an optional path before `path`."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ReplayError(f"{url}: must be an http:// or https:// URL")
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        lines = [f"POST {parts.path.rstrip('/')}{path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
        lines += ["Content-Type: application/json", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join([*lines, "X-Session-ID: "]).encode()
        self._now = clock
        self._idle: deque[_Connection] = deque()

    async def post(self, session: str, body: bytes, timeout_s: float) -> Outcome:
        """Send one request and wait for its end. Server and network failures are in `Outcome.error`, never raised."""
        name = session.encode("ascii", "replace").translate(None, _CONTROLS)
        request = [self._head, name, b"\r\nContent-Length: %d\r\n\r\n" % len(body), body]
        started = self._now()
        connection = self._take_idle(self._now())
        if connection is not None:
            outcome = await self._exchange(connection, request, timeout_s)
            if outcome.error != "no_reply":
                return outcome
        try:
            connection = await self._connect()
        except (OSError, TimeoutError, ssl.SSLError):
            return Outcome(sent_at=started, ended_at=self._now(), error="connect")
        return await self._exchange(connection, request, timeout_s)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, connection: _Connection, request: list[bytes], timeout_s: float) -> Outcome:
        reply = connection.send(request)
        sent_at = self._now()
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await reply
        except TimeoutError:
            return Outcome(sent_at=sent_at, ended_at=sent_at + timeout_s, error="timeout")
        finally:
            if not reply.done() or reply.cancelled():
                connection.close()
        if connection.is_open:
            self._idle.append(connection)
        return outcome

    def _take_idle(self, now: float) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and now - connection.idle_since < _MAX_IDLE_S:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await loop.create_connection(
                lambda: _Connection(self._now), self._host, self._port, ssl=self._tls
            )
        return connection
