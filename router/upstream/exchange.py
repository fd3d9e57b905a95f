"""Sends one request to one worker, on an idle connection if there is one, and relays a stream to the client."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from itertools import count
from types import TracebackType

from router.core.request.attempt import (
    AttemptFailed,
    CannotConnect,
    ReplyTooLarge,
    WorkerDied,
    WorkerErred,
    WorkerHungUp,
    WorkerSilent,
    WorkerSlow,
)
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd
from router.core.request.request import Request
from router.core.request.routes import BodyCodec
from router.core.tenants.memory import Holding, MemoryFull
from router.core.worker import WorkerAddress
from router.proxy.ports import Client
from router.upstream.connection import WorkerConnection
from router.upstream.pool import Pool, WorkerPort
from router.upstream.relay import RelayEvent
from router.wire.sse import Filter

MAX_POST_BYTES = 32 << 20
"""Largest reply to a request of the router itself: the ids of a long prompt, or their text."""


class Upstream:
    """Makes exchanges with all workers. ``gaps(model)`` returns the function that observes the seconds between a stream's
    reads."""

    def __init__(self, pool: Pool, gaps: Callable[[str], Callable[[float], None]]) -> None:
        self._pool = pool
        self._gaps = gaps
        self._name = secrets.token_hex(4)
        self._numbers = count(1)

    @property
    def rejected_replies(self) -> Counter[str]:
        """Replies of workers that were rejected, by what is wrong with them."""
        return self._pool.rejected_replies

    def exchange(self, worker: WorkerAddress) -> Exchange:
        return Exchange(self._pool, self._pool.port(worker), self._gaps, f"{self._name}{next(self._numbers):x}")

    def abort_unresponsive(self, worker: WorkerAddress) -> None:
        """The worker answers no probes: fail its exchanges that have been silent for a while."""
        self._pool.abort_unresponsive(worker)


_JSON_HEADER = f"Content-Type: {BodyCodec.JSON.value}\r\n"


class Exchange:
    """A context manager. Its end gives the connection back, or aborts it if it is not clean."""

    __slots__ = ("_connection", "_gaps", "_name", "_pool", "_port", "_reply")

    def __init__(self, pool: Pool, port: WorkerPort, gaps: Callable[[str], Callable[[float], None]], name: str) -> None:
        """``name`` is unique among all exchanges of all replicas. The worker gets it after the request's id: a client may have
        chosen that id, and an engine may take two requests with the same id for one."""
        self._name = name
        self._pool = pool
        self._port = port
        self._gaps = gaps
        self._connection: WorkerConnection | None = None
        self._reply: Reply | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self._name} {self._port.address.url} {self._connection!r}>"

    async def ask(
        self, request: Request, stream_filter: Filter | None, memory: Holding, first_event_s: float | None = None
    ) -> Reply:
        """Send the request. Returns a whole reply, or a stream whose first event is here. ``memory`` grows with what is held
        of the reply. Raises AttemptFailed, MemoryFull."""
        route = request.route
        headers = f"Content-Type: {route.spec.codec.value}\r\nX-Request-Id: {request.request_id}-{self._name}\r\n"
        if request.traceparent:
            headers += f"traceparent: {request.traceparent}\r\n"
            if request.tracestate:
                headers += f"tracestate: {request.tracestate}\r\n"
        return await self._send(
            "POST", route.path, request.body, headers, stream_filter, first_event_s, memory, may_wait=True
        )

    async def get(self, path: str, max_reply_bytes: int) -> Reply:
        """Send a GET request of the router itself. Raises AttemptFailed."""
        return await self._send("GET", path, b"", "", None, None, max_reply_bytes=max_reply_bytes)

    async def post(self, path: str, body: bytes, answer_s: float) -> Reply:
        """Send a POST request of the router itself, with a JSON body. ``answer_s`` limits the wait for the reply. Raises
        AttemptFailed."""
        return await self._send("POST", path, body, _JSON_HEADER, None, answer_s, max_reply_bytes=MAX_POST_BYTES)

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: str,
        stream_filter: Filter | None,
        within_s: float | None,
        memory: Holding | None = None,
        max_reply_bytes: int | None = None,
        *,
        may_wait: bool = False,
    ) -> Reply:
        """Send the request on a kept connection, or on a new one. If the worker closes a kept connection before any byte of
        the reply, the connection was idle for too long, and the request is sent once more on a new one. A request that the
        router aborted is not sent again, since the worker may be at work on it."""
        head = self._port.head(method, path, len(body), headers)
        kept, was_sent = self._port.take_idle(), False
        while True:
            try:
                self._connection = connection = kept or await self._pool.connect(self._port)
            except CannotConnect as refused:
                raise WorkerDied("the worker closed the connection, and is gone") if was_sent else refused from None
            try:
                connection.ask(
                    head,
                    body,
                    stream_filter,
                    within_s,
                    may_wait=may_wait,
                    memory=memory,
                    max_reply_bytes=max_reply_bytes,
                )
                self._reply = await connection.reply()
            except WorkerHungUp:
                if kept is None or connection.has_answered:
                    raise
                connection.release()
                kept, was_sent = None, True
            else:
                return self._reply

    def require_unbroken(self) -> None:
        """Call this after any wait between ``ask`` and ``relay``. Raises AttemptFailed if the stream broke meanwhile."""
        if self._connection is not None and self._connection.error is not None:
            raise self._connection.error

    async def relay(self, client: Client, record: Record) -> StreamEnd:
        """Relay the stream until it or the client ends. This task runs in between only if the client does not read."""
        connection, reply = self._connection, self._reply
        if connection is None or reply is None:
            raise RuntimeError("relay comes after ask")
        relay = connection.start_relay(client, client.stream_head(reply, record), self._gaps(record.model))
        try:
            while (event := await connection.relay_event()) is RelayEvent.FULL:
                if not await client.drained():
                    return StreamEnd.CLIENT_STALLED
                connection.resume()
        finally:
            record.chunks += relay.reads
        return _BREAKS[type(connection.error)] if event is RelayEvent.FAILED and connection.error else _ENDS[event]

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.release()


_ENDS = {RelayEvent.DONE: StreamEnd.DONE, RelayEvent.CLIENT_GONE: StreamEnd.CLIENT_GONE}
_BREAKS: dict[type[AttemptFailed | MemoryFull], StreamEnd] = {
    WorkerDied: StreamEnd.DIED,
    WorkerHungUp: StreamEnd.DIED,
    WorkerSilent: StreamEnd.SILENT,
    WorkerSlow: StreamEnd.SLOW,
    WorkerErred: StreamEnd.ERRED,
    ReplyTooLarge: StreamEnd.TOO_LARGE,
    MemoryFull: StreamEnd.TOO_LARGE,
}
