"""Who asks the fleet for what the router needs itself: takes an answer that is not streamed, and is never gone."""

from __future__ import annotations

from router.core.errors import RouterError, WorkerError
from router.core.record import Record
from router.core.reply import Reply


class OwnClient:
    """Of one request. ``reply`` and ``record`` are there once it was dispatched."""

    is_chunked = False

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.record: Record | None = None

    async def answer(self, reply: Reply, record: Record) -> None:
        self.reply, self.record = reply, record

    def stream_head(self, _reply: Reply, _record: Record) -> bytes:
        raise WorkerError("a worker streamed what was not to be streamed")

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return False

    def is_full(self) -> bool:
        return False

    async def drained(self) -> bool:
        return True

    def end_stream(self, events: bytes) -> None: ...

    def break_off(self, error: RouterError) -> None: ...

    def break_off_with(self, event: bytes) -> None: ...
