"""Accepts clients' connections to one port, and limits their number, the size of heads, and the time for a head.

aiohttp limits none of these. Deadlines are numbers that one sweep a second compares, since a timer for each request would
almost always be set and cancelled for nothing.
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
from router.server.slow_client import slow_client_rule

SWEEP_S = 1.0
CUTS_AT_ONCE = 32
"""Connections that are cut in one turn of the loop. Each costs about 0.1 ms, most of it after the sweep."""

LINGER_S = 1.0

MAX_FIELD_BYTES, MAX_FIELDS = 8190, 64
"""Largest header field of a request, and most of them."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ConnectionHooks:
    """``on_cut(cause)`` is called for a connection that is closed without an answer, ``on_refusal(route, status)`` for a
    request that no handler saw."""

    on_cut: Callable[[str], None]
    on_refusal: Callable[[str, int], None]
    new_request_id: Callable[[], str]


class ClientServer(web.Server):
    """All clients' connections to one port. ``run`` must be running: it enforces the deadlines."""

    def __init__(
        self, handler: Handler, limits: LimitsConfig, hooks: ConnectionHooks, key_connections: KeyConnections
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.key_connections = key_connections
        self._limits = limits
        self.hooks = hooks
        self.head_bytes = 0
        """Bytes of all incomplete heads."""
        self.lingering = 0
        """Connections whose refused bodies are being dropped."""
        self.large_buffer = memoryview(bytearray(LARGE_READ_BYTES))
        self.small_buffer = self.large_buffer[:SMALL_READ_BYTES]
        self._slow_rule = slow_client_rule(limits)
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
        """The transport of a connection, also of one that is closing."""
        return self._connections.get(client)

    def next_due(self) -> float:
        return self._loop.time() + self._limits.head_timeout_s

    def turn_away(self, transport: asyncio.Transport) -> None:
        """Refuse the newest connection, so that those that are served stay."""
        self.hooks.on_cut("too_many")
        self._refuse(transport, Overloaded("the router has as many connections as it may have", retry_after_s=1))

    def check_head(self, client: ClientProtocol) -> None:
        """Refuse an incomplete head if it is too large, or if all of them together are. A head that comes in one read is never
        affected."""
        if client.head_bytes > self._limits.max_head_bytes:
            error: RouterError = HeadersTooLarge(f"the head is larger than {self._limits.max_head_bytes} bytes")
        elif self.head_bytes > self._limits.max_total_head_bytes:
            error = Overloaded("too many heads are not whole", retry_after_s=1)
        else:
            return
        self.hooks.on_cut("head_size")
        if client.transport is not None:
            self._refuse(client.transport, error)
        client.drop_head()

    def _refuse(self, transport: asyncio.Transport, error: RouterError) -> None:
        """Answer a connection that has no complete request yet."""
        body = error_body(error, None)
        retry = b"Retry-After: %d\r\n" % error.retry_after_s if error.retry_after_s else b""
        transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\n%bX-Request-Id: %b\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b"
            % (
                error.status,
                HTTPStatus(error.status).phrase.encode(),
                retry,
                self.hooks.new_request_id().encode(),
                len(body),
                body,
            )
        )
        transport.close()

    async def run(self) -> None:
        """Enforce the deadlines until cancelled, each at most two SWEEP_S late. Requests run between many cuts."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._loop.time()
            clients = cast(Iterable[tuple[ClientProtocol, asyncio.Transport]], self._connections.items())
            overdue = [
                (client, transport)
                for client, transport in clients
                if now > client.head_due or client.reads_too_slowly(transport, now, self._slow_rule)
            ]
            for number, (client, transport) in enumerate(overdue):
                if number % CUTS_AT_ONCE == CUTS_AT_ONCE - 1:
                    await asyncio.sleep(0)
                if now > client.head_due and client.transport is not None:
                    client.transport.abort()
                    self.hooks.on_cut("head_timeout")
                elif client.reads_too_slowly(transport, now, self._slow_rule):
                    transport.abort()
                    self.hooks.on_cut("write_stall")
