"""One request to one worker: on an idle connection if there is one, and its stream on to the client."""

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
"""Of an answer to what the router asks for itself: the ids of a long prompt, or their text."""


class Upstream:
    """All workers, as dispatch meets them. ``gaps(model)`` is where the times between a stream's reads are observed."""

    def __init__(self, pool: Pool, gaps: Callable[[str], Callable[[float], None]]) -> None:
        self._pool = pool
        self._gaps = gaps
        self._name = secrets.token_hex(4)
        self._numbers = count(1)

    @property
    def breaches(self) -> Counter[str]:
        """Answers that were ended since they were not as they must be, by what was wrong."""
        return self._pool.breaches

    def exchange(self, worker: WorkerAddress) -> Exchange:
        return Exchange(self._pool, self._pool.port(worker), self._gaps, f"{self._name}{next(self._numbers):x}")

    def abort_unresponsive(self, worker: WorkerAddress) -> None:
        """It answers no probes: end those of its exchanges that have been silent for a while."""
        self._pool.abort_unresponsive(worker)


_JSON_HEADER = f"Content-Type: {BodyCodec.JSON.value}\r\n"


class Exchange:
    """A context: leaving it gives the connection back, or aborts it if it is not clean."""

    __slots__ = ("_connection", "_gaps", "_name", "_pool", "_port", "_reply")

    def __init__(self, pool: Pool, port: WorkerPort, gaps: Callable[[str], Callable[[float], None]], name: str) -> None:
        """``name``: of no other exchange with any worker, on any replica. It goes behind the request's id, which a client may
        have chosen, and which engines may take for one of another request under way."""
        self._name = name
        self._pool = pool
        self._port = port
        self._gaps = gaps
        self._connection: WorkerConnection | None = None
        self._reply: Reply | None = None

    async def ask(
        self, request: Request, watch: Filter | None, memory: Holding, first_event_s: float | None = None
    ) -> Reply:
        """Send the request; returns a whole reply, or a stream whose first event is here. ``memory`` grows with what is held of
        the answer. Raises AttemptFailed, MemoryFull."""
        route = request.route
        headers = f"Content-Type: {route.spec.codec.value}\r\nX-Request-Id: {request.request_id}-{self._name}\r\n"
        if request.traceparent:
            headers += f"traceparent: {request.traceparent}\r\n"
            if request.tracestate:
                headers += f"tracestate: {request.tracestate}\r\n"
        return await self._send("POST", route.path, request.body, headers, watch, first_event_s, memory, may_wait=True)

    async def get(self, path: str, max_reply_bytes: int) -> Reply:
        """What the router asks for itself. Raises AttemptFailed."""
        return await self._send("GET", path, b"", "", None, None, max_reply_bytes=max_reply_bytes)

    async def post(self, path: str, body: bytes, answer_s: float) -> Reply:
        """The same, with JSON, and an answer within so many seconds. Raises AttemptFailed."""
        return await self._send("POST", path, body, _JSON_HEADER, None, answer_s, max_reply_bytes=MAX_POST_BYTES)

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: str,
        watch: Filter | None,
        within_s: float | None,
        memory: Holding | None = None,
        max_reply_bytes: int | None = None,
        *,
        may_wait: bool = False,
    ) -> Reply:
        """A kept connection that the worker closes before any byte of an answer was idle for too long, which is nobody's
        failure: the request is sent again, once, on a fresh one. Where there is none to be had, the worker died with the
        request. What the router itself gave up is not sent again: the worker has it, and may be at work on it."""
        head = self._port.head(method, path, len(body), headers)
        kept, was_sent = self._port.take_idle(), False
        while True:
            try:
                self._connection = connection = kept or await self._pool.connect(self._port)
            except CannotConnect as refused:
                raise WorkerDied("the worker closed the connection, and is gone") if was_sent else refused from None
            try:
                connection.ask(
                    head, body, watch, within_s, may_wait=may_wait, memory=memory, max_reply_bytes=max_reply_bytes
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
        """For whoever awaited something between ``ask`` and ``relay``. Raises AttemptFailed."""
        if self._connection is not None and self._connection.error is not None:
            raise self._connection.error

    async def relay(self, client: Client, record: Record) -> StreamEnd:
        """Splice until the stream or the client ends. Only a client that does not read makes this task run in between."""
        connection, reply = self._connection, self._reply
        if connection is None or reply is None:
            raise RuntimeError("relay comes after ask")
        connection.start_relay(client, client.stream_head(reply, record), self._gaps(record.model))
        try:
            while (event := await connection.relay_event()) is RelayEvent.FULL:
                if not await client.drained():
                    return StreamEnd.CLIENT_STALLED
                connection.resume()
        finally:
            record.chunks += connection.chunks
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
