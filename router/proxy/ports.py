"""The ports of the proxy: clients on one side, workers on the other, and the dispatch between them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from router.core.errors import RouterError
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd
from router.core.request.request import Request
from router.core.tenants.memory import Holding
from router.core.tenants.tenant import TenantRules
from router.core.worker import WorkerAddress
from router.wire.sse import Filter


class Exchange(Protocol):
    """One request to one worker. A context: leaving it gives the connection back, or ends the worker's work on the request."""

    async def ask(
        self, request: Request, stream_filter: Filter | None, memory: Holding, first_event_s: float | None = None
    ) -> Reply:
        """Send the request. ``memory`` grows with the held bytes of the answer. ``first_event_s``: how long a stream's first
        event may take; None: as configured. Raises AttemptFailed, MemoryFull."""
        ...

    async def post(self, path: str, body: bytes, answer_s: float) -> Reply:
        """A request of the router's own. Raises AttemptFailed."""
        ...

    def require_unbroken(self) -> None:
        """Call it after an await between ``ask`` and ``relay``. Raises AttemptFailed if the connection broke meanwhile."""
        ...

    async def relay(self, client: Client, record: Record) -> StreamEnd:
        """Splice the stream into the client's connection until one of them ends it."""
        ...


class Dispatch(Protocol):
    """Serves requests."""

    async def dispatch(self, request: Request, client: Client, started_at: float, rules: TenantRules) -> None:
        """Raises RouterError."""
        ...


class Upstream(Protocol):
    def exchange(self, worker: WorkerAddress) -> AbstractContextManager[Exchange]: ...


class Client(Protocol):
    """The client of one request. When it leaves, the task of its request is cancelled."""

    is_chunked: bool

    @property
    def memory(self) -> Holding:
        """The bytes that the router holds for it."""
        ...

    async def answer(self, reply: Reply, record: Record) -> None:
        """A whole reply."""
        ...

    def stream_head(self, reply: Reply, record: Record) -> bytes:
        """The head at the first call; empty when another worker continues the stream."""
        ...

    def write(self, data: bytes) -> None: ...

    def write_last(self, data: bytes) -> None:
        """The end of the answer's body; nothing may follow."""
        ...

    def is_closing(self) -> bool: ...

    def is_full(self) -> bool: ...

    async def drained(self) -> bool: ...

    def end_stream(self, events: bytes) -> None:
        """The stream's last events, and its end."""
        ...

    def break_off(self, error: RouterError) -> None:
        """The stream cannot go on: send an error event and abort, so that no client takes it for a whole answer."""
        ...

    def break_off_with(self, event: bytes) -> None:
        """Send the worker's error event and abort, so that no client takes the stream for a whole answer."""
        ...
