"""An index in PostgreSQL, which routers share: words by its stemmer, and vectors of meaning by pgvector where there is an
embedder. A server that is away is no reason not to start: it is asked again with each call.

Passages are found by words as soon as they are added. Their vectors follow, and may be behind: what an embedder could not do
is done when something is added to the session again. A search whose query could not be embedded goes by words alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from router.core.request.request import Sid, Tenant
from router.sessions.recall.fusion import DEFAULT_WEIGHTS, Weights, fuse
from router.sessions.recall.index import Embedder, IndexUnavailable, Passage
from router.sessions.recall.postgres import rows, schema
from router.sessions.recall.postgres.pool import Pool

ADDED_AT_ONCE, EMBEDDED_AT_ONCE, SWEPT_AT_ONCE = 50, 32, 20
"""Items, pieces and sessions of one transaction."""
FUSED = 50
"""Items of each ranking that are fused."""
FUSED_PIECES = 500
"""Pieces that are read for them by meaning: an item may have many that are near."""


@dataclass(frozen=True, slots=True)
class PostgresLimits:
    max_connections: int = 8
    max_pending: int = 256
    """Calls that have a connection, or wait for one."""
    search_timeout_s: float = 0.25
    embed_timeout_s: float = 0.15
    """Of a query. After it, words alone decide."""
    call_timeout_s: float = 10.0
    """Of another call's transaction, with the wait for a connection."""
    max_session_pieces: int = 50_000
    """Of some 300 characters. The oldest of a session's go first."""
    lifetime_s: float = 0.0
    """Of a session behind the last that was added to it; 0: for ever."""


DEFAULT_LIMITS = PostgresLimits()


class PostgresIndex:
    def __init__(
        self,
        url: str,
        embedder: Embedder | None = None,
        limits: PostgresLimits = DEFAULT_LIMITS,
        weights: Weights = DEFAULT_WEIGHTS,
    ) -> None:
        """``url``: postgresql://user:password@host:port/database?sslmode=…, or with ``?host=`` the directory of a socket. The
        embedder is the caller's to close."""
        self._embedder = embedder
        self._limits = limits
        self._weights = weights
        self._pool = Pool(url, limits.max_connections, limits.max_pending, limits.call_timeout_s, self._prepare)
        self.searches_without_meaning = 0
        """Whose query the embedder could not embed, or not in time. They went by words alone."""

    @property
    def pending(self) -> int:
        """Calls that have a connection, or wait for one."""
        return self._pool.pending

    @property
    def max_pending(self) -> int:
        return self._pool.max_pending

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
        by_words = await self._search_words(deadline, sid, owner, words, upto)
        by_meaning = await self._search_vectors(deadline, sid, owner, query, upto)
        return fuse((by_words, by_meaning), limit)

    async def forget(self, sid: Sid, owner: Tenant) -> None:
        await self._pool.run(self._due(), rows.forget, sid, owner)

    async def sweep(self) -> None:
        """Deletes what has expired."""
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
            await schema.keep_model(connection, self._embedder.name, self._embedder.dimensions)

    async def _embed(self, sid: Sid, owner: Tenant, embedder: Embedder) -> None:
        model = rows.Model(embedder.name, embedder.dimensions)
        while found := await self._pool.run(self._due(), rows.without_vector, sid, owner, model, EMBEDDED_AT_ONCE):
            vectors = await embedder.embed([piece.text for piece in found])
            await self._pool.run(self._due(), rows.add_vectors, sid, owner, model, found, vectors)

    async def _search_words(
        self, deadline: float, sid: Sid, owner: Tenant, words: Sequence[str], upto: int
    ) -> list[tuple[int, float]]:
        """``(number, weight)``, best first; so below."""
        if not self._weights.words:
            return []
        found = await self._pool.run(deadline, rows.by_words, sid, owner, words, upto, FUSED)
        return [(number, self._weights.words * share**2) for number, share in found]

    async def _search_vectors(
        self, deadline: float, sid: Sid, owner: Tenant, query: str, upto: int
    ) -> list[tuple[int, float]]:
        if self._embedder is None or not self._weights.meaning:
            return []
        try:
            async with asyncio.timeout_at(min(deadline, _now() + self._limits.embed_timeout_s)):
                (vector,) = await self._embedder.embed([query])
        except (IndexUnavailable, TimeoutError):
            self.searches_without_meaning += 1
            return []
        model = rows.Model(self._embedder.name, self._embedder.dimensions)
        found = await self._pool.run(deadline, rows.by_meaning, sid, owner, model, vector, upto, FUSED_PIECES)
        return [(number, self._weights.meaning) for number in found[:FUSED]]


def _now() -> float:
    return asyncio.get_running_loop().time()
