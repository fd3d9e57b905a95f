"""Owns the connections to all workers: opens them, keeps idle ones, enforces their deadlines, closes them.

The connection that was used last is reused first. The idle limit is below the worker's own, so that a request seldom meets a
closing connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter, deque
from collections.abc import Callable

from router.config.workers import FleetConfig, TimeoutsConfig
from router.core.address import is_forbidden
from router.core.fleet.patience import Signs
from router.core.request.attempt import CannotConnect
from router.core.worker import WorkerAddress
from router.upstream.connection import WorkerConnection
from router.upstream.read_scheduler import ReadScheduler
from router.upstream.reply_reader import REJECTION_KINDS

SWEEP_S = 0.25


class WorkerPort:
    """One worker's address in the form that requests need, and its idle connections."""

    def __init__(self, address: WorkerAddress, worker_key: str, idle_s: float, max_idle: int) -> None:
        self.address = address
        self.idle: deque[WorkerConnection] = deque()
        self._idle_s = idle_s
        self._max_idle = max_idle
        key = f"Authorization: Bearer {worker_key}\r\n" if worker_key else ""
        host = address.url.partition("://")[2]
        self._common = f" HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\n{key}"
        self._now = asyncio.get_running_loop().time

    def __repr__(self) -> str:
        return f"<WorkerPort {self.address.url} idle={len(self.idle)}>"

    def head(self, method: str, path: str, body_bytes: int, headers: str) -> bytes:
        content = f"Content-Length: {body_bytes}\r\n" if body_bytes else ""
        return f"{method} {path}{self._common}{headers}{content}\r\n".encode("latin-1")

    def take_idle(self) -> WorkerConnection | None:
        oldest = self._now() - self._idle_s
        while self.idle:
            connection = self.idle.pop()
            if connection.is_usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def put_idle(self, connection: WorkerConnection) -> None:
        if len(self.idle) >= self._max_idle or not connection.is_usable:
            connection.abort()
        else:
            connection.idle_since = self._now()
            self.idle.append(connection)

    def close(self) -> None:
        """Close the idle connections, and keep none from now on."""
        self._max_idle = 0
        while self.idle:
            self.idle.pop().abort()

    def drop_stale(self, now: float) -> None:
        while self.idle and (not self.idle[0].is_usable or now - self.idle[0].idle_since > self._idle_s):
            self.idle.popleft().abort()


class Pool:
    """Owns every connection. ``run`` must be running: it enforces the deadlines."""

    def __init__(
        self,
        fleet: FleetConfig,
        timeouts: TimeoutsConfig,
        signs: Callable[[WorkerAddress], Signs | None] = lambda _address: None,
    ) -> None:
        """``signs`` returns the signs of a worker's work. A request waits longer for a silent worker that shows some."""
        self._fleet = fleet
        self._timeouts = timeouts
        self._tls = _tls_context(fleet)
        self._signs = signs
        self._loop = asyncio.get_running_loop()
        self._ports: dict[WorkerAddress, WorkerPort] = {}
        self._open: dict[WorkerConnection, WorkerAddress] = {}
        self.scheduler = ReadScheduler(self._loop)
        self.rejected_replies: Counter[str] = Counter(dict.fromkeys(REJECTION_KINDS, 0))
        """Replies that were rejected, by what is wrong with them."""

    def __repr__(self) -> str:
        return f"<Pool ports={len(self._ports)} connections={self.open_connections}>"

    def forget(self, address: WorkerAddress) -> None:
        """The worker left the fleet: close its idle connections. Live requests end in their own time, and so do their
        connections."""
        port = self._ports.pop(address, None)
        if port is not None:
            port.close()

    def abort_unresponsive(self, address: WorkerAddress) -> None:
        """The worker answers no probes: fail its requests that have heard nothing for a while."""
        for connection in [each for each, there in self._open.items() if there == address]:
            connection.abort_unresponsive()

    async def connect(self, port: WorkerPort) -> WorkerConnection:
        """Raises CannotConnect."""
        address = port.address
        tls = self._tls if address.scheme == "https" else None
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: WorkerConnection(
                        self._loop, self._timeouts, port.put_idle, self.scheduler, self.rejected_replies
                    ),
                    address.host,
                    address.port,
                    ssl=tls,
                )
        except TimeoutError:
            raise CannotConnect("no connection in time") from None
        except (OSError, UnicodeError) as error:
            raise CannotConnect(f"cannot connect: {_reason(error)}") from None
        if is_forbidden(connection.peer_host):  # the name may resolve to another address by now
            connection.abort()
            raise CannotConnect("the worker's name resolves to a link-local address or a metadata service")
        self._open[connection] = address
        return connection

    async def run(self) -> None:
        """Enforce the deadlines until cancelled, each at most SWEEP_S late. A stream only writes a number for it."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._loop.time()
            for port in self._ports.values():
                port.drop_stale(now)
            self._open = {each: address for each, address in self._open.items() if not each.is_closed}
            for connection, address in self._open.items():
                if now > connection.deadline:
                    connection.expire(self._signs(address))

    def close(self) -> None:
        for connection in self._open:
            connection.abort()
        self._open.clear()
        self._ports.clear()

    @property
    def open_connections(self) -> int:
        return sum(not connection.is_closed for connection in self._open)

    @property
    def overdue(self) -> int:
        """Requests whose worker is silent beyond the deadline and that still wait."""
        now = self._loop.time()
        return sum(connection.is_overdue(now) for connection in self._open)

    def port(self, address: WorkerAddress) -> WorkerPort:
        port = self._ports.get(address)
        if port is None:
            fleet = self._fleet
            port = WorkerPort(address, fleet.worker_key, fleet.idle_s, fleet.max_idle_connections)
            self._ports[address] = port
        return port


def _reason(error: OSError | UnicodeError) -> str:
    """The system's reason. A TLS error is an OSError with an obscure text, and a host that cannot be a DNS name is a
    UnicodeError."""
    if isinstance(error, UnicodeError):
        return "its host is no host name"
    if isinstance(error, ssl.SSLError) and error.reason in _PLAIN:
        return "the worker does not speak TLS: should its URL begin with http://?"
    return error.strerror or str(error) or type(error).__name__


_PLAIN = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")
"""OpenSSL's names for a plain-text answer to a handshake."""


def _tls_context(fleet: FleetConfig) -> ssl.SSLContext:
    """For https workers: the system's authorities and no client certificate, unless the configuration names some."""
    context = ssl.create_default_context(cafile=fleet.ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if fleet.client_cert:
        context.load_cert_chain(fleet.client_cert, fleet.client_key)
    return context
