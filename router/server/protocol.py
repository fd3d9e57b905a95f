"""A client's connection as aiohttp reads it: how much of one read is parsed before others have their turn, and when reading
stops.

Bodies have deadlines of their own in ``bodies``.
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
from router.runtime.freed_memory import untie_error, untie_transport
from router.server.errors import error_response
from router.server.slow_reader import StallRule

if TYPE_CHECKING:
    from router.server.client_server import ClientServer

MAX_LINGERING = 64
"""Connections whose refused bodies are taken in at once; others are closed with their answer. Two thousand that send as fast as
they can would hold up everybody."""

READ_BUFFER_BYTES = 128 << 10
NOTHING = memoryview(b"")
NOT_HTTP = b"\0"
"""Makes the parser refuse a head wherever it is."""

PIECE_BYTES = 8 << 10
"""So much of a head, or of a chunked body, is parsed at once: up to 1.3 ms, where each chunk has one byte."""

SMALL_READ_BYTES, LARGE_READ_BYTES = 16 << 10, 256 << 10
"""One read before a request's head is whole, and of its body. What is behind the head is kept until somebody asks for it."""

MAX_UNSENT_BYTES = 16 << 10
"""Beyond this a connection counts as full, and what is not read has to be paid for from the memory budget."""


class ClientProtocol(web.RequestHandler):
    """``head_due``: when the head that is awaited must be whole; never while a request is served or the connection rests.
    ``head_bytes``: what came of a head that is not whole. ``wire_bytes``: what came of the body, framing and all.
    ``unsent_bytes``: what the client had not read yet at ``unsent_since``, when it was last held against the stall rule.

    A beginning that came in one read with the request before it is bounded by ``limits.keepalive_s`` alone, like rest.
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
        """Read, and not parsed yet; while there is any, nothing more is read."""
        self._discarded: asyncio.Future[None] | None = None
        """What comes is dropped, and this is done when it was too much, or nothing more can come."""
        self._discard_bytes = 0
        self._is_awaited = False
        """Somebody reads the newest request's body."""
        self._newest: Any = None
        """The newest request and its body, while that is not whole."""
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

    def has_stalled(self, transport: asyncio.Transport, now: float, rule: StallRule) -> bool:
        """Is what is unsent read too slowly, or not at all? aiohttp waits for ever for a client to read its answer, and a
        transport that is closed waits for ever until all of it is sent."""
        unsent_bytes = transport.get_write_buffer_size()
        if not unsent_bytes or unsent_bytes > self.unsent_bytes:
            self.unsent_bytes, self.unsent_since = unsent_bytes, now
        elif now - self.unsent_since > rule.within_s:
            if rule.is_too_slow(self.unsent_bytes - unsent_bytes):
                return True
            self.unsent_bytes, self.unsent_since = unsent_bytes, now
        return False

    def get_buffer(self, _size_hint: int) -> memoryview:
        """Where the next read goes: at once from there to the parser, so all connections share it. The small one is the large
        one's beginning."""
        return self._clients.small_buffer if self._newest is None else self._clients.large_buffer

    def buffer_updated(self, count: int) -> None:
        self.data_received(bytes(self._clients.large_buffer[:count]))

    def data_received(self, data: bytes) -> None:
        if self._discarded is not None:
            self._discard(len(data))
        elif not self._rest and (len(data) <= PIECE_BYTES or self._takes_as_it_is(len(data))):
            self._parse(data)  # also nothing: aiohttp looks again at what its parser has left
        elif data:
            self._rest = memoryview(bytes(self._rest) + data)
            self._pause_transport_reading()
            self._parse_rest()
        else:
            self._parse(data)

    def begin_body(self) -> None:
        """Somebody reads it."""
        self._is_awaited = True
        self._parse_rest()

    def discard(self, most_bytes: int) -> asyncio.Future[None]:
        """From now on nothing is parsed: to do so would cost more than the request that was refused. Done at once where too
        many others linger."""
        self._rest = NOTHING
        self._discard_bytes = most_bytes
        self._discarded = self._loop.create_future()
        self._clients.lingering += 1
        if self._newest is not None and self._newest[1].exception() is None:
            self._newest[1].read_nowait()  # nobody else will
        if self._clients.lingering > MAX_LINGERING:
            self._end_discarding()
        else:
            super()._resume_transport_reading()
        return self._discarded

    def _discard(self, count: int) -> None:
        """One read, and the next when others had their turn."""
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
        """A piece of a body, and the next when others had their turn. One of known length costs nothing to parse."""
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
        """Not while aiohttp has enough, nor a body that nobody has asked for: whoever is refused is refused by the head."""
        is_wanted = self._is_awaited or self._newest is None
        return is_wanted and not (self._reading_paused or self._buffer_paused) and self.transport is not None

    def _resume_transport_reading(self) -> None:
        if self._newest is None and not self._rest:  # as with most: they came whole
            super()._resume_transport_reading()
        elif self._rest:
            self._loop.call_soon(self._parse_rest)
        elif self._may_parse():
            super()._resume_transport_reading()

    def _takes_as_it_is(self, count: int) -> bool:
        """Are the next bytes all of a body whose length is known?"""
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
        """Nothing more is parsed, and what the parser holds of the head is let go at once: the connection may end later."""
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
        """Where the answer needed no body: a short one is thrown away when it comes, and the connection goes on. The client is
        told that the connection ends behind any other."""
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
        """Answers what cannot be parsed in the errors' own shape, and closes."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        error: ClientError = MalformedRequest("the request is not valid HTTP")
        if isinstance(exc, LineTooLong):
            error = HeadersTooLarge("a line of the request's head is too long")
        elif exc is not None and "Too many headers" in str(exc):
            error = HeadersTooLarge("the request has too many headers")
        self._clients.observers.refusal("other", error.status)
        response = error_response(error, None, self._clients.observers.new_request_id())
        response.force_close()
        return response
