"""The index where recall is off. It is never behind, and finds nothing."""

from __future__ import annotations

from collections.abc import Sequence

from router.core.request.request import Sid, Tenant
from router.sessions.recall.index import Passage


class NullIndex:
    pending = 0
    max_pending = 0
    searches_without_meaning = 0

    async def newest(self, sid: Sid, owner: Tenant) -> int:  # noqa: ARG002
        return 1 << 62

    async def add(self, sid: Sid, owner: Tenant, passages: Sequence[Passage]) -> None: ...

    async def search(self, sid: Sid, owner: Tenant, query: str, *, upto: int, limit: int) -> Sequence[int]:  # noqa: ARG002
        return ()

    async def forget(self, sid: Sid, owner: Tenant) -> None: ...

    async def close(self) -> None: ...
