"""A client for the router's own requests: it takes one answer that is not streamed, and never disconnects."""

from __future__ import annotations

from typing import Final

import msgspec

from router.core.errors import RouterError, WorkerError
from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.request import NO_TENANT
from router.core.tenants.memory import Holding, MemoryBudget
from router.core.tenants.tenant import EVERYBODY, TenantRules

LOW_PRIORITY: Final[TenantRules] = msgspec.structs.replace(EVERYBODY, priority=-100)
"""Rules for requests that no client waits for. No tenant's limits count them, or its own requests would be refused for them."""


MAX_REPLY_BYTES = 16 << 20
"""Largest answer: a summary, or a few vectors."""


class InternalClient:
    """For one request. ``reply`` and ``record`` are set once it was dispatched. Its answer has a bound of its own."""

    is_chunked = False

    def __init__(self) -> None:
        self.memory: Holding = MemoryBudget(MAX_REPLY_BYTES).hold(NO_TENANT)
        self.reply: Reply | None = None
        self.record: Record | None = None

    async def answer(self, reply: Reply, record: Record) -> None:
        self.reply, self.record = reply, record

    def stream_head(self, _reply: Reply, _record: Record) -> bytes:
        raise WorkerError("a worker streamed an answer that was asked for as a whole")

    def write(self, data: bytes) -> None: ...

    def write_last(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return False

    def is_full(self) -> bool:
        return False

    async def drained(self) -> bool:
        return True

    def end_stream(self, events: bytes) -> None: ...

    def break_off(self, error: RouterError) -> None: ...

    def break_off_with(self, event: bytes) -> None: ...
