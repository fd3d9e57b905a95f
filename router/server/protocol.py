"""A client's connection as aiohttp reads it, and all of them together: how many there may be, and how long a head may take.

aiohttp bounds neither. The deadlines are numbers that one sweep a second looks at, since a timer for every request would be
set and cancelled for nothing. Bodies have deadlines of their own, where they are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from router.config import LimitsConfig
from router.core.errors import ClientError, HeadersTooLarge, MalformedRequest, Overloaded
from router.server.errors import error_body, error_response
from router.server.key_connections import KeyConnections
from router.server.stall import StallRule, stall_rule

SWEEP_S = 1.0
CUTS_AT_ONCE = 32
"""Each costs about 0.1 ms, most of it after the sweep has moved on."""

READ_BUFFER_BYTES = 128 << 10
LINGER_S = 1.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Observers:
    """``cut(cause)`` for a connection that ends unanswered; ``refusal(route, status)`` for what no handler saw."""

    cut: Callable[[str], None]
    refusal: Callable[[str, int], None]
    new_request_id: Callable[[], str]


class ClientProtocol(web.RequestHandler):
    """``head_due``: when the head that is awaited must be whole; never while a request is served or the connection rests.
    ``unsent_bytes``: what the client had not read yet at ``unsent_since``, when it was last held against the stall rule.

    A beginning that came in one read with the request before it is bounded by ``limits.keepalive_s`` alone, like rest.
    """

    __slots__ = ("_clients", "head_due", "key", "unsent_bytes", "unsent_since")

    def __init__(self, clients: ClientServer, **kwargs: Any) -> None:
        super().__init__(clients, **kwargs)
        self._clients = clients
        self.head_due = inf
        self.key = b""
        self.unsent_bytes = 0
        self.unsent_since = inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._clients.has_room():
            self._force_close = True
            self._clients.turn_away(cast(asyncio.Transport, transport))
            return
        self.head_due = self._clients.next_due()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._clients.key_connections.release(self)
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

    def data_received(self, data: bytes) -> None:
        heads = self._request_count
        super().data_received(data)
        if self._request_count != heads:
            self.head_due = inf
        elif self.head_due == inf and self._waiter is not None:
            self.head_due = self._clients.next_due()

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


class ClientServer(web.Server):
    """Every client's connection on one port. ``run`` must be running: it enforces the deadlines of heads."""

    def __init__(
        self, handler: Handler, limits: LimitsConfig, observers: Observers, key_connections: KeyConnections
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.key_connections = key_connections
        self._limits = limits
        self.observers = observers
        self._stall = stall_rule(limits)
        self._protocol_kwargs: dict[str, Any] = {
            "loop": self._loop,
            "keepalive_timeout": limits.keepalive_s,
            "max_line_size": limits.max_header_bytes,
            "max_field_size": limits.max_header_bytes,
            "max_headers": limits.max_headers,
            "lingering_time": LINGER_S,
            "read_bufsize": READ_BUFFER_BYTES,
            "auto_decompress": False,
            "access_log": None,
        }

    def __call__(self) -> web.RequestHandler:
        return ClientProtocol(self, **self._protocol_kwargs)

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def has_room(self) -> bool:
        return len(self._connections) < self._limits.max_connections

    def next_due(self) -> float:
        return self._loop.time() + self._limits.head_timeout_s

    def turn_away(self, transport: asyncio.Transport) -> None:
        """The newest, so that whoever is served stays so."""
        self.observers.cut("too_many")
        error = Overloaded("the router has as many connections as it may have", retry_after_s=1)
        body = error_body(error, None)
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
            b"X-Request-Id: %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (self.observers.new_request_id().encode(), len(body), body)
        )
        transport.close()

    async def run(self) -> None:
        """Sweep until cancelled. Nobody is given up more than two SWEEP_S late, and others are served between many of them."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._loop.time()
            clients = cast(Iterable[tuple[ClientProtocol, asyncio.Transport]], self._connections.items())
            overdue = [
                (client, transport)
                for client, transport in clients
                if now > client.head_due or client.has_stalled(transport, now, self._stall)
            ]
            for number, (client, transport) in enumerate(overdue):
                if number % CUTS_AT_ONCE == CUTS_AT_ONCE - 1:
                    await asyncio.sleep(0)
                if now > client.head_due and client.transport is not None:
                    client.transport.abort()
                    self.observers.cut("head_timeout")
                elif client.has_stalled(transport, now, self._stall):
                    transport.abort()
                    self.observers.cut("write_stall")
