"""How an index searches: by words, and by meaning where there is an embedder.

Passages are found by words as soon as they are added. Their vectors come later: what an embedder failed to do is done when
something is added to the session again. A query that is not embedded in time goes by words alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from router.sessions.recall.fusion import DEFAULT_WEIGHTS, Weights, fuse
from router.sessions.recall.index import Embedder, IndexUnavailable

FUSED = 50
"""Items of each ranking that are fused."""
FUSED_PIECES = 500
"""Pieces read to rank items by meaning: many pieces of one item may be near."""

ByWords = Callable[[], Awaitable[Sequence[tuple[int, float]]]]
"""Finds numbers of items and the share of the query that each has, best first."""
ByMeaning = Callable[[Sequence[float]], Awaitable[Sequence[int]]]
"""Finds numbers of items that are near a vector, best first."""


@dataclass(frozen=True, slots=True)
class SearchLimits:
    max_pending: int = 256
    """Calls under way and waiting."""
    lifetime_s: float = 0.0
    """Sessions expire so long after the last addition; 0: never."""
    search_timeout_s: float = 0.25
    embed_timeout_s: float = 0.15
    """To embed a query. After it, words alone decide."""
    max_session_pieces: int = 50_000
    """Pieces have some 300 characters. The oldest of a session are deleted first."""


class Search:
    def __init__(self, embedder: Embedder | None, limits: SearchLimits, weights: Weights = DEFAULT_WEIGHTS) -> None:
        self._embedder = embedder
        self._embed_timeout_s = limits.embed_timeout_s
        self._weights = weights
        self.without_meaning = 0
        """Searches whose query was not embedded, or not in time."""

    async def run(
        self, query: str, limit: int, deadline: float, by_words: ByWords, by_meaning: ByMeaning
    ) -> Sequence[int]:
        """At most ``limit`` numbers of items, best first. ``deadline``: by the loop's clock, for the embedder; the callables
        keep it themselves, and raise IndexUnavailable."""
        words, meaning = self._weights.words, self._weights.meaning
        in_words = [(number, words * share**2) for number, share in await by_words()] if words else []
        vector = await self._embed(query, deadline) if meaning else None
        near = await by_meaning(vector) if vector is not None else ()
        return fuse((in_words, [(number, meaning) for number in near[:FUSED]]), limit)

    async def _embed(self, query: str, deadline: float) -> Sequence[float] | None:
        if self._embedder is None:
            return None
        latest = asyncio.get_running_loop().time() + self._embed_timeout_s
        try:
            async with asyncio.timeout_at(min(deadline, latest)):
                (vector,) = await self._embedder.embed([query])
        except (IndexUnavailable, TimeoutError):
            self.without_meaning += 1
            return None
        return vector
