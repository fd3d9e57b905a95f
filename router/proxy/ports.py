"""The two sides that a request is carried between, as dispatch needs them: clients, and workers; and who lets it in."""

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
    """One request to one worker; leaving its context gives the connection back, or ends the worker's work on it."""

    async def ask(
        self, request: Request, watch: Filter | None, memory: Holding, first_event_s: float | None = None
    ) -> Reply:
        """``memory`` grows with what is held of the answer. ``first_event_s``: how long a stream's first event may take; None:
        as long as configured. Raises AttemptFailed, MemoryFull."""
        ...

    async def post(self, path: str, body: bytes, answer_s: float) -> Reply:
        """What the router asks for itself. Raises AttemptFailed."""
        ...

    def require_unbroken(self) -> None:
        """For whoever awaited something between ``ask`` and ``relay``. Raises AttemptFailed."""
        ...

    async def relay(self, client: Client, record: Record) -> StreamEnd:
        """Splice the stream into the client's connection until one of them ends it."""
        ...


class Dispatch(Protocol):
    """Requests, on their way."""

    async def dispatch(self, request: Request, client: Client, started_at: float, rules: TenantRules) -> None:
        """Raises RouterError."""
        ...


class Upstream(Protocol):
    def exchange(self, worker: WorkerAddress) -> AbstractContextManager[Exchange]: ...


class Client(Protocol):
    """Whoever asked. Being cancelled is how dispatch learns that it is gone."""

    is_chunked: bool

    @property
    def memory(self) -> Holding:
        """What the router holds for it."""
        ...

    async def answer(self, reply: Reply, record: Record) -> None:
        """A whole reply."""
        ...

    def stream_head(self, reply: Reply, record: Record) -> bytes:
        """The head, once; behind it, when another worker goes on with the stream, nothing."""
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
        """The stream cannot go on: say so in an event, and abort, so that nobody takes it for a whole answer."""
        ...

    def break_off_with(self, event: bytes) -> None:
        """The same, with the event by which the worker said so."""
        ...
