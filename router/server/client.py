"""Writes an answer to a client's connection. aiohttp has read the request.

The head of a worker's reply is our own, and leaves in one write with the first bytes of the body, since every write is a
system call. aiohttp gets ``SENT`` or ``SENT_AND_CLOSE``, which do nothing when it prepares and ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from router.core.errors import RouterError
from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.routes import Route
from router.core.tenants.memory import REPLY, UNREAD, Holding, MemoryFull
from router.server.errors import error_body
from router.server.slow_client import SlowClientRule
from router.wire.dialects import DIALECTS
from router.wire.framing import LAST_CHUNK, frame

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_CONTENT_TYPES = (b"application/json", b"text/event-stream", b"text/plain")
"""Content types of workers' replies. A page or a script would appear to come from the router."""

_MAX_HEADER_BYTES = 128

log = logging.getLogger("warmroute.server")

_VISIBLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")

_ONE_WRITE_BYTES = 65536


class _Sent(web.StreamResponse):
    """A response whose bytes are already sent. It holds no state of a request, so one object serves all requests."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._stays_open = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._stays_open

    async def prepare(self, _request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, _data: bytes = b"") -> None:
        return None


class ClientConnection:
    """One request's answer. Implements ``proxy.ports.Client``."""

    __slots__ = (
        "_decision_headers",
        "_extra_head",
        "_has_ended",
        "_hidden",
        "_protocol",
        "_request",
        "_slow_rule",
        "_transport",
        "has_started",
        "is_chunked",
        "keep_alive",
        "memory",
        "route",
    )

    def __init__(
        self,
        request: web.BaseRequest,
        route: Route,
        *,
        extra_head: bytes,
        slow_rule: SlowClientRule,
        decision_headers: bool,
        memory: Holding,
        stays_open: bool = True,
        hidden: str = "",
    ) -> None:
        """``hidden`` is text that the router added to the request's body. Workers quote bodies in their errors, and the client
        must not see it. ``memory`` counts what is held for the request; its owner releases it once the client has read the
        answer."""
        self._request = request
        self._transport = request.transport
        self._protocol = request.protocol
        self._extra_head = extra_head
        self._hidden = hidden.encode()
        self._slow_rule = slow_rule
        self._decision_headers = decision_headers
        self.memory = memory
        self.route = route
        self._has_ended = False
        self.is_chunked = request.version >= HttpVersion11
        self.keep_alive = stays_open and request.keep_alive and self.is_chunked
        self.has_started = False

    def __repr__(self) -> str:
        return f"<ClientConnection {self.route.path} started={self.has_started} ended={self._has_ended}>"

    def add_head(self, name: str, value: str) -> None:
        """Add a header before the answer begins. Characters other than visible ASCII are percent-encoded."""
        self._extra_head += b"%b: %b\r\n" % (name.encode(), quote(value, safe=_VISIBLE).encode())

    # Streams

    def write(self, data: bytes) -> None:
        if self._has_ended:  # the client would read it as the next answer
            log.error("bytes after the end of an answer: the connection was aborted")
            self.abort()
            return
        self._transport.write(data)  # type: ignore[union-attr]  # is_closing is asked before

    def write_last(self, data: bytes) -> None:
        self.write(data)
        self._has_ended = True

    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def is_full(self) -> bool:
        return self._protocol.writing_paused

    # Answers and their ends

    async def answer(self, reply: Reply, record: Record) -> None:
        pieces = reply.pieces
        if reply.status >= 400 and self._hidden:
            pieces = (reply.body.replace(self._hidden, b"***"),)
        body_bytes = sum(map(len, pieces))
        head = self._head(reply, record) + b"Content-Length: %d\r\n\r\n" % body_bytes
        if self.is_closing():
            return
        self.has_started = True
        if body_bytes < _ONE_WRITE_BYTES:
            self.write_last(b"".join((head, *pieces)))
        elif not self._has_ended:
            self._transport.writelines((head, *pieces))  # type: ignore[union-attr]
            self._has_ended = True

    def stream_head(self, reply: Reply, record: Record) -> bytes:
        if self.has_started:
            return b""  # another worker goes on with the same stream
        self.has_started = True
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if self.is_chunked else b"\r\n"
        return self._head(reply, record) + b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n" + framing

    async def drained(self) -> bool:
        """Wait until the client has read enough. True if it has; False if it is gone, or was aborted. It is aborted if it
        reads too slowly, or if there is no memory for its unread bytes."""
        if self.is_full() and not self.is_closing():
            if not self._holds_unread():
                self.abort()
                return False
            room = asyncio.ensure_future(self._room())
            try:
                while not room.done():
                    left = self._unsent_bytes()
                    await asyncio.wait((room,), timeout=self._slow_rule.within_s)
                    if not room.done() and self._slow_rule.is_too_slow(left - self._unsent_bytes()):
                        self.abort()
                        break
            finally:
                room.cancel()
                self.memory.resize(UNREAD, 0)
        return not self.is_closing()

    def _holds_unread(self) -> bool:
        """Count the unread bytes, except those of a whole reply, which are counted already."""
        try:
            self.memory.resize(UNREAD, max(self._unsent_bytes() - self.memory[REPLY], 0))
        except MemoryFull:
            return False
        return True

    async def _room(self) -> None:
        """Wait until there is room. A timeout here would cancel the one future that every drain of aiohttp waits for."""
        with contextlib.suppress(ConnectionError):
            await self._request.writer.drain()

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def end_stream(self, events: bytes) -> None:
        if not self.is_closing():
            framed = frame(events) if self.is_chunked and events else events
            self.write_last(framed + LAST_CHUNK if self.is_chunked else framed)

    def break_off(self, error: RouterError) -> None:
        self.break_off_with(DIALECTS[self.route].error_event % error_body(error, self.route))

    def break_off_with(self, event: bytes) -> None:
        if not self.is_closing() and not self._has_ended:
            event = event.replace(self._hidden, b"***") if self._hidden else event
            self.write(frame(event) if self.is_chunked else event)
        self.keep_alive = False
        if self._transport is not None:
            self._transport.close()  # the buffer is sent, and no chunk ends the body

    def cut_short(self, error: RouterError) -> None:
        """Send an error, whether or not an answer has begun, and close the connection."""
        if self.has_started:
            self.break_off(error)
            return
        self.has_started = True
        self.keep_alive = False
        if self._transport is not None and not self._transport.is_closing():
            body = error_body(error, self.route)
            reason = _REASONS[error.status].encode()
            self.write_last(
                b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nRetry-After: %d\r\nConnection: close\r\n%b"
                b"Content-Length: %d\r\n\r\n%b"
                % (error.status, reason, error.retry_after_s or 1, self._extra_head, len(body), body)
            )
            self._transport.close()

    def abort(self) -> None:
        self.keep_alive = False
        if self._transport is not None:
            self._transport.abort()

    def sent(self) -> web.StreamResponse:
        return SENT if self.keep_alive else SENT_AND_CLOSE

    def _head(self, reply: Reply, record: Record) -> bytes:
        lines = [b"HTTP/1.1 %d %b\r\n" % (reply.status, _REASONS.get(reply.status, "").encode())]
        lines += _passed(reply.headers)
        lines.append(b"x-warmroute-worker: %b\r\n" % record.worker.encode())
        if self._decision_headers:
            lines.append(
                b"x-warmroute-reason: %b\r\nx-warmroute-predicted-cached-tokens: %d\r\n"
                % (record.reason.encode(), record.predicted_cached_tokens)
            )
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        lines.append(self._extra_head)
        return b"".join(lines)


def _passed(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """The lines of the head that come from the worker. A header that is too long or unusual is left out, and such a content
    type becomes application/octet-stream."""
    kind = headers.get(b"content-type", b"")
    if not kind.startswith(_CONTENT_TYPES) or len(kind) > _MAX_HEADER_BYTES:
        kind = b"application/octet-stream"
    lines = [b"content-type: %b\r\nX-Content-Type-Options: nosniff\r\n" % kind]
    for name in (b"retry-after", b"date"):
        value = headers.get(name)
        if value is not None and len(value) <= _MAX_HEADER_BYTES:
            lines.append(b"%b: %b\r\n" % (name, value))
    return lines


SENT = _Sent(keep_alive=True)
SENT_AND_CLOSE = _Sent(keep_alive=False)
