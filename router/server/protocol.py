"""Reads a client's connection for aiohttp: limits how much of one read is parsed in one turn of the loop, and decides when
reading stops.

Deadlines of bodies are in ``bodies``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from math import inf
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import _ErrInfo

from router.core.errors import ClientError, HeadersTooLarge, MalformedRequest
from router.runtime.reference_cycles import untie_error, untie_transport
from router.server.errors import error_response
from router.server.slow_client import SlowClientRule

if TYPE_CHECKING:
    from router.server.client_server import ClientServer

MAX_LINGERING = 64
"""Connections whose refused bodies are dropped at once. Further ones are closed with their answer: two thousand that send at
full speed would delay all requests."""

READ_BUFFER_BYTES = 128 << 10
NOTHING = memoryview(b"")
NOT_HTTP = b"\0"
"""The parser refuses a head with this byte in any place."""

PIECE_BYTES = 8 << 10
"""Bytes of a head, or of a chunked body, that are parsed at once. They take up to 1.3 ms if each chunk has one byte."""

SMALL_READ_BYTES, LARGE_READ_BYTES = 16 << 10, 256 << 10
"""Largest read before a head is complete, and of a body. What follows the head is kept until it is asked for."""

MAX_UNSENT_BYTES = 16 << 10
"""Above this a connection counts as full, and its unread bytes count in the memory budget."""


class ClientProtocol(web.RequestHandler):
    """One client's connection.

    ``head_due`` is when the awaited head must be complete; infinite while a request is served or the connection is idle.
    ``head_bytes`` counts the bytes of an incomplete head, ``wire_bytes`` those of a body with its framing. ``unsent_bytes`` is
    what the client had not read at ``unsent_since``, when its speed was last checked.

    A head that begins in one read with the request before it is limited by ``limits.keepalive_s`` alone, like an idle
    connection.
    """

    __slots__ = (
        "_clients",
        "_discard_bytes",
        "_discarded",
        "_is_awaited",
        "_line",
        "_newest",
        "_rest",
        "head_bytes",
        "head_due",
        "key",
        "unsent_bytes",
        "unsent_since",
        "wire_bytes",
    )

    def __init__(self, clients: ClientServer, **kwargs: Any) -> None:
        super().__init__(clients, **kwargs)
        self._clients = clients
        self._rest = NOTHING
        """Bytes that are read and not parsed yet. While there are any, nothing more is read."""
        self._discarded: asyncio.Future[None] | None = None
        """Set while reads are dropped. Done when too much was dropped, or when nothing more can come."""
        self._discard_bytes = 0
        self._is_awaited = False
        """The body of the newest request is asked for."""
        self._newest: Any = None
        """The newest request and its body, while that is incomplete."""
        self._line: bytes | None = b""
        """The beginning of a request line; None once the line is complete."""
        self.head_due = inf
        self.head_bytes = 0
        self.wire_bytes = 0
        self.key = b""
        self.unsent_bytes = 0
        self.unsent_since = inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._clients.has_room():
            self._force_close = True
            self._clients.turn_away(cast(asyncio.Transport, transport))
            return
        self.head_due = self._clients.next_due()
        cast(asyncio.Transport, transport).set_write_buffer_limits(MAX_UNSENT_BYTES)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._clients.key_connections.release(self)
        self._rest, self._newest = NOTHING, None
        self._end_head()
        self._end_discarding()
        untie_transport(self._clients.transport_of(self))
        super().connection_lost(exc)

    def reads_too_slowly(self, transport: asyncio.Transport, now: float, rule: SlowClientRule) -> bool:
        """True if the client reads its unsent bytes too slowly, or not at all. aiohttp waits for ever for a client to read its
        answer, and a closed transport waits for ever until all of it is sent."""
        unsent_bytes = transport.get_write_buffer_size()
        if not unsent_bytes or unsent_bytes > self.unsent_bytes:
            self.unsent_bytes, self.unsent_since = unsent_bytes, now
        elif now - self.unsent_since > rule.within_s:
            if rule.is_too_slow(self.unsent_bytes - unsent_bytes):
                return True
            self.unsent_bytes, self.unsent_since = unsent_bytes, now
        return False

    def get_buffer(self, _size_hint: int) -> memoryview:
        """The buffer for the next read. It is parsed at once, so all connections share it. The small buffer is the beginning
        of the large one."""
        return self._clients.small_buffer if self._newest is None else self._clients.large_buffer

    def buffer_updated(self, count: int) -> None:
        self.data_received(bytes(self._clients.large_buffer[:count]))

    def data_received(self, data: bytes) -> None:
        if self._discarded is not None:
            self._discard(len(data))
        elif not self._rest and (len(data) <= PIECE_BYTES or self._takes_as_it_is(len(data))):
            self._parse(data)  # also nothing: aiohttp then continues with what its parser has left
        elif data:
            self._rest = memoryview(bytes(self._rest) + data)
            self._pause_transport_reading()
            self._parse_rest()
        else:
            self._parse(data)

    def begin_body(self) -> None:
        """Read the body: it is asked for."""
        self._is_awaited = True
        self._parse_rest()

    def discard(self, most_bytes: int) -> asyncio.Future[None]:
        """Drop all further reads, up to ``most_bytes``. Parsing them would cost more than the refused request. The future is
        done at once if too many other connections linger."""
        self._rest = NOTHING
        self._discard_bytes = most_bytes
        self._discarded = self._loop.create_future()
        self._clients.lingering += 1
        if self._newest is not None and self._newest[1].exception() is None:
            self._newest[1].read_nowait()  # no handler reads it
        if self._clients.lingering > MAX_LINGERING:
            self._end_discarding()
        else:
            super()._resume_transport_reading()
        return self._discarded

    def _discard(self, count: int) -> None:
        """Drop one read, and read on in the next turn of the loop."""
        self._discard_bytes -= count
        self._pause_transport_reading()
        if self._discard_bytes <= 0:
            self._end_discarding()
        else:
            self._loop.call_soon(super()._resume_transport_reading)

    def _end_discarding(self) -> None:
        if self._discarded is not None and not self._discarded.done():
            self._discarded.set_result(None)
            self._clients.lingering -= 1

    def _parse_rest(self) -> None:
        """Parse one piece of a body, and the next one in another turn of the loop. A body of known length costs nothing to
        parse."""
        while self._rest and self._may_parse():
            if self._takes_as_it_is(len(self._rest)):
                piece, self._rest = self._rest, NOTHING
            else:
                piece, self._rest = self._rest[:PIECE_BYTES], self._rest[PIECE_BYTES:]
            is_body = self._newest is not None
            self._parse(bytes(piece))
            if is_body and self._rest:
                self._loop.call_soon(self._parse_rest)
                return
        if not self._rest and self._may_parse():
            super()._resume_transport_reading()

    def _may_parse(self) -> bool:
        """False while aiohttp has enough, and for a body that is not asked for: a request may be refused by its head."""
        is_wanted = self._is_awaited or self._newest is None
        return is_wanted and not (self._reading_paused or self._buffer_paused) and self.transport is not None

    def _resume_transport_reading(self) -> None:
        if self._newest is None and not self._rest:  # most requests come in one read
            super()._resume_transport_reading()
        elif self._rest:
            self._loop.call_soon(self._parse_rest)
        elif self._may_parse():
            super()._resume_transport_reading()

    def _takes_as_it_is(self, count: int) -> bool:
        """True if the next bytes all belong to a body of known length."""
        if self._newest is None:
            return False
        message, payload = self._newest
        length = None if message.chunked else message.headers.get("Content-Length")
        return length is not None and count <= int(length) - payload.total_bytes

    def _parse(self, data: bytes) -> None:
        if self._force_close or self._close:
            self._rest = NOTHING
            return
        heads = self._request_count
        is_body = self._newest is not None
        if not is_body and self._has_loose_line(data):
            data = NOT_HTTP
        super().data_received(data)
        if self._request_count != heads:
            message, body = self._messages[-1]
            if isinstance(message, _ErrInfo):
                untie_error(message.exc)
            self._newest = None
            self.head_due = inf
            self.wire_bytes = 0
            self._end_head()
            self._is_awaited = False
            if not body.is_eof():
                self._newest = (message, body)
                self._pause_transport_reading()
            return
        if self.head_due == inf and self._waiter is not None:
            self.head_due = self._clients.next_due()
        if is_body:
            self.wire_bytes += len(data)
            if self._newest[1].is_eof():
                self._newest = None
        elif data:
            self.head_bytes += len(data)
            self._clients.head_bytes += len(data)
            self._clients.check_head(self)

    def _has_loose_line(self, data: bytes) -> bool:
        """True for two spaces in a request line. aiohttp's parser accepts them, and another reader may see another target."""
        if self._line is None:
            return False
        line = (self._line + data if self._line else data).lstrip(b"\r\n")
        end = line.find(b"\n")
        self._line = line if end < 0 else None
        return line.find(b"  ", 0, len(line) if end < 0 else end) >= 0

    def drop_head(self) -> None:
        """Parse nothing more, and release what the parser holds of the head at once. The connection may end later."""
        self.force_close()
        self._parser = None
        self._end_head()

    def _end_head(self) -> None:
        self._clients.head_bytes -= self.head_bytes
        self.head_bytes = 0
        self._line = b""

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """If the answer did not need the body, drop a short body when it comes, and keep the connection. After any other body
        the answer says that the connection ends."""
        if self._newest is not None and not request.content.is_eof() and not self._force_close:
            if not self._newest[0].chunked and (request.content_length or 0) <= LARGE_READ_BYTES:
                self.begin_body()
            else:
                resp.force_close()
        return super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that cannot be parsed by an error of our shape, and close."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        error: ClientError = MalformedRequest("the request is not valid HTTP")
        if isinstance(exc, LineTooLong):
            error = HeadersTooLarge("a line of the request's head is too long")
        elif exc is not None and "Too many headers" in str(exc):
            error = HeadersTooLarge("the request has too many headers")
        self._clients.hooks.on_refusal("other", error.status)
        response = error_response(error, None, self._clients.hooks.new_request_id())
        response.force_close()
        return response
