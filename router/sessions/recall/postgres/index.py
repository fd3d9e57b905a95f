"""An index in PostgreSQL, which several routers share: words by its stemmer, and vectors of meaning by pgvector where there is
an embedder. The router starts without the server, and asks it again with each call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from router.core.request.request import Sid, Tenant
from router.sessions.recall.index import Embedder, Passage
from router.sessions.recall.postgres import rows, schema
from router.sessions.recall.postgres.pool import Pool
from router.sessions.recall.search import FUSED, FUSED_PIECES, Search, SearchLimits

ADDED_AT_ONCE, EMBEDDED_AT_ONCE, SWEPT_AT_ONCE = 50, 32, 20
"""Items, pieces and sessions in one transaction."""


@dataclass(frozen=True, slots=True)
class PostgresLimits(SearchLimits):
    max_connections: int = 8
    call_timeout_s: float = 10.0
    """For a transaction that is no search, with the wait for a connection."""


DEFAULT_LIMITS = PostgresLimits()


class PostgresIndex:
    def __init__(
        self,
        url: str,
        embedder: Embedder | None = None,
        limits: PostgresLimits = DEFAULT_LIMITS,
    ) -> None:
        """``url``: postgresql://user:password@host:port/database?sslmode=…, or with ``?host=`` the directory of a socket. The
        caller closes the embedder."""
        self._embedder = embedder
        self._limits = limits
        self._model = rows.Model(embedder.name, embedder.dimensions) if embedder else rows.Model("", 0)
        self._search = Search(embedder, limits)
        self._pool = Pool(url, limits.max_connections, limits.max_pending, limits.call_timeout_s, self._prepare)

    @property
    def pending(self) -> int:
        """Calls with a connection, and calls that wait for one."""
        return self._pool.pending

    @property
    def max_pending(self) -> int:
        return self._pool.max_pending

    @property
    def searches_without_meaning(self) -> int:
        return self._search.without_meaning

    async def newest(self, sid: Sid, owner: Tenant) -> int:
        return await self._pool.run(self._due(), rows.newest, sid, owner)

    async def add(self, sid: Sid, owner: Tenant, passages: Sequence[Passage]) -> None:
        for at in range(0, len(passages), ADDED_AT_ONCE):
            new = await asyncio.to_thread(rows.split, passages[at : at + ADDED_AT_ONCE])
            await self._pool.run(self._due(), rows.add, sid, owner, new, self._limits.max_session_pieces)
        if self._embedder is not None:
            await self._embed(sid, owner, self._embedder)

    async def search(self, sid: Sid, owner: Tenant, query: str, *, upto: int, limit: int) -> Sequence[int]:
        words = rows.query_words(query)
        if not words:
            return []
        deadline = _now() + self._limits.search_timeout_s
        return await self._search.run(
            query,
            limit,
            deadline,
            lambda: self._pool.run(deadline, rows.by_words, sid, owner, words, upto, FUSED),
            lambda vector: self._pool.run(
                deadline, rows.by_meaning, sid, owner, self._model, vector, upto, FUSED_PIECES
            ),
        )

    async def forget(self, sid: Sid, owner: Tenant) -> None:
        await self._pool.run(self._due(), rows.forget, sid, owner)

    async def sweep(self) -> None:
        """Deletes expired sessions."""
        if not self._limits.lifetime_s:
            return
        while await self._pool.run(self._due(), rows.sweep, self._limits.lifetime_s, SWEPT_AT_ONCE) == SWEPT_AT_ONCE:
            pass

    async def close(self) -> None:
        self._pool.close()

    def _due(self) -> float:
        return _now() + self._limits.call_timeout_s

    async def _prepare(self, connection: Any) -> None:
        await schema.create(connection, has_vectors=self._embedder is not None)
        if self._embedder is not None:
            await schema.keep_model(connection, *self._model)

    async def _embed(self, sid: Sid, owner: Tenant, embedder: Embedder) -> None:
        model = self._model
        while found := await self._pool.run(self._due(), rows.without_vector, sid, owner, model, EMBEDDED_AT_ONCE):
            vectors = await embedder.embed([piece.text for piece in found])
            await self._pool.run(self._due(), rows.add_vectors, sid, owner, model, found, vectors)


def _now() -> float:
    return asyncio.get_running_loop().time()
