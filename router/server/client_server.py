"""Clients' connections to one port: how many there may be, how large a head may be, and how long it may take.

aiohttp bounds none of these. The deadlines are numbers that one sweep a second compares, since a timer for every request would
be set and cancelled for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web

from router.config.serving import LimitsConfig
from router.core.errors import HeadersTooLarge, Overloaded, RouterError
from router.server.errors import error_body
from router.server.key_connections import KeyConnections
from router.server.protocol import LARGE_READ_BYTES, READ_BUFFER_BYTES, SMALL_READ_BYTES, ClientProtocol
from router.server.slow_reader import stall_rule

SWEEP_S = 1.0
CUTS_AT_ONCE = 32
"""Each costs about 0.1 ms, most of it after the sweep has moved on."""

LINGER_S = 1.0

MAX_FIELD_BYTES, MAX_FIELDS = 8190, 64
"""Largest header field of a request, and most of them."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Observers:
    """``cut(cause)`` for a connection that ends unanswered; ``refusal(route, status)`` for what no handler saw."""

    cut: Callable[[str], None]
    refusal: Callable[[str, int], None]
    new_request_id: Callable[[], str]


class ClientServer(web.Server):
    """Every client's connection on one port. ``run`` must be running: it enforces the deadlines of heads."""

    def __init__(
        self, handler: Handler, limits: LimitsConfig, observers: Observers, key_connections: KeyConnections
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.key_connections = key_connections
        self._limits = limits
        self.observers = observers
        self.head_bytes = 0
        """Of all heads that are not whole."""
        self.lingering = 0
        """Connections whose refused bodies are being taken in."""
        self.large_buffer = memoryview(bytearray(LARGE_READ_BYTES))
        self.small_buffer = self.large_buffer[:SMALL_READ_BYTES]
        self._stall = stall_rule(limits)
        self._protocol_kwargs: dict[str, Any] = {
            "loop": self._loop,
            "keepalive_timeout": limits.keepalive_s,
            "max_line_size": MAX_FIELD_BYTES,
            "max_field_size": MAX_FIELD_BYTES,
            "max_headers": MAX_FIELDS,
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

    @property
    def max_connections(self) -> int:
        return self._limits.max_connections

    def has_room(self) -> bool:
        return len(self._connections) < self.max_connections

    def transport_of(self, client: ClientProtocol) -> asyncio.Transport | None:
        """Also of one that is closing."""
        return self._connections.get(client)

    def next_due(self) -> float:
        return self._loop.time() + self._limits.head_timeout_s

    def turn_away(self, transport: asyncio.Transport) -> None:
        """The newest, so that whoever is served stays so."""
        self.observers.cut("too_many")
        self._refuse(transport, Overloaded("the router has as many connections as it may have", retry_after_s=1))

    def check_head(self, client: ClientProtocol) -> None:
        """A head that is not whole is refused when it is too large, or when all of them are; whoever sends a head in one read
        is never concerned."""
        if client.head_bytes > self._limits.max_head_bytes:
            error: RouterError = HeadersTooLarge(f"the head is larger than {self._limits.max_head_bytes} bytes")
        elif self.head_bytes > self._limits.max_total_head_bytes:
            error = Overloaded("too many heads are not whole", retry_after_s=1)
        else:
            return
        self.observers.cut("head_size")
        if client.transport is not None:
            self._refuse(client.transport, error)
        client.drop_head()

    def _refuse(self, transport: asyncio.Transport, error: RouterError) -> None:
        """Before there is a request that could be answered."""
        body = error_body(error, None)
        retry = b"Retry-After: %d\r\n" % error.retry_after_s if error.retry_after_s else b""
        transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\n%bX-Request-Id: %b\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b"
            % (
                error.status,
                HTTPStatus(error.status).phrase.encode(),
                retry,
                self.observers.new_request_id().encode(),
                len(body),
                body,
            )
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
