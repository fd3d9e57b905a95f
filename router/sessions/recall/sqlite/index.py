"""An index in one SQLite file: words by FTS5, and vectors of meaning where there is an embedder."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from sqlite3 import Connection
from typing import Concatenate, ParamSpec, Self, TypeVar

from router.core.request.request import Sid, Tenant
from router.sessions.recall import rarity
from router.sessions.recall.chunks import last_place, number_of
from router.sessions.recall.fusion import DEFAULT_WEIGHTS, Weights
from router.sessions.recall.index import Embedder, IndexUnavailable, Passage
from router.sessions.recall.search import FUSED, FUSED_PIECES, Search, SearchLimits
from router.sessions.recall.sqlite import rows
from router.sessions.recall.sqlite.file import IndexFile
from router.sessions.recall.words import query_words

P = ParamSpec("P")
T = TypeVar("T")

ADDED_AT_ONCE, EMBEDDED_AT_ONCE = 50, 32
"""Items and pieces in one transaction: few, so that searches wait for a short time only."""


@dataclass(frozen=True, slots=True)
class IndexLimits(SearchLimits):
    max_bytes: int = 1 << 30
    """Bound of texts and vectors; the file takes up to twice that. The session that was added to least recently is deleted
    first, and the session being added to stays in any case."""


DEFAULT_LIMITS = IndexLimits()


class SqliteIndex:
    """Several processes with the same embedder may share a file."""

    def __init__(
        self,
        file: IndexFile,
        embedder: Embedder | None,
        limits: IndexLimits,
        weights: Weights,
        wall_clock: Callable[[], float],
    ) -> None:
        self._file = file
        self._embedder = embedder
        self._limits = limits
        self._search = Search(embedder, limits, weights)
        self._wall_clock = wall_clock
        self.bytes = 0
        """Bytes of texts and vectors after the last change by this process."""
        self._is_untidy = False
        """Deleted data is still in the write-ahead log."""
        self.evicted: Counter[str] = Counter({"sessions": 0, "pieces": 0})
        """Sessions deleted to make room for others, and pieces deleted to make room in their session."""

    @classmethod
    async def open(
        cls,
        path: Path,
        embedder: Embedder | None = None,
        limits: IndexLimits = DEFAULT_LIMITS,
        weights: Weights = DEFAULT_WEIGHTS,
        wall_clock: Callable[[], float] = lambda: 0.0,
    ) -> Self:
        """``path``: a file, which is created where it is missing and can then be read by its owner only; or ``IN_MEMORY``. The
        caller closes the embedder. ``wall_clock``: Unix time, by which sessions expire. Raises IndexUnavailable."""
        if embedder is not None and find_spec("numpy") is None:
            raise IndexUnavailable("vectors need the package numpy: warmroute[recall]")
        index = cls(await IndexFile.open(path, limits.max_pending), embedder, limits, weights, wall_clock)
        try:
            if embedder is not None:
                await index._file.write(rows.keep_model, f"{embedder.name} {embedder.dimensions}")
            index.bytes = await index._file.read(rows.total_bytes)
        except BaseException:
            await index.close()
            raise
        return index

    @property
    def pending(self) -> int:
        """Calls that wait for the thread, and the one that it runs."""
        return self._file.pending

    @property
    def max_pending(self) -> int:
        return self._file.max_pending

    @property
    def searches_without_meaning(self) -> int:
        return self._search.without_meaning

    @property
    def max_bytes(self) -> int:
        return self._limits.max_bytes

    async def newest(self, sid: Sid, owner: Tenant) -> int:
        return await self._file.read(rows.newest, sid, owner)

    async def add(self, sid: Sid, owner: Tenant, passages: Sequence[Passage]) -> None:
        for at in range(0, len(passages), ADDED_AT_ONCE):
            some = passages[at : at + ADDED_AT_ONCE]
            pieces = await self._change(rows.add, sid, owner, some, self._limits.max_session_pieces, self._wall_clock())
            self.evicted["pieces"] += pieces
        sessions = await self._change(rows.forget_oldest, self._limits.max_bytes)
        self.evicted["sessions"] += sessions
        await self._delete_dropped()
        if self._embedder is not None:
            await self._embed(sid, owner, self._embedder)

    async def search(self, sid: Sid, owner: Tenant, query: str, *, upto: int, limit: int) -> Sequence[int]:
        words = query_words(query)
        if not words:
            return []
        deadline = asyncio.get_running_loop().time() + self._limits.search_timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                return await self._search.run(
                    query,
                    limit,
                    deadline,
                    lambda: self._file.read(_by_words, sid, owner, words, upto),
                    lambda vector: self._file.read(_by_meaning, sid, owner, vector, upto),
                )
        except TimeoutError as error:
            told = f"{self._file.path}: no answer within {self._limits.search_timeout_s} s"
            raise IndexUnavailable(told) from error

    async def forget(self, sid: Sid, owner: Tenant) -> None:
        await self._change(rows.forget, sid, owner)
        await self._delete_dropped()

    async def sweep(self) -> None:
        """Deletes expired sessions. Raises IndexUnavailable."""
        if not self._limits.lifetime_s:
            return
        while await self._change(rows.forget_expired, self._wall_clock() - self._limits.lifetime_s):
            await self._delete_dropped()

    async def tidy(self) -> None:
        """To be called now and then: removes deleted data from the write-ahead log. Raises IndexUnavailable."""
        if self._is_untidy:
            self._is_untidy = False
            try:
                await self._file.overwrite()
            except BaseException:
                self._is_untidy = True
                raise

    async def close(self) -> None:
        await self._file.close()

    async def _change(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Writes, and notes the bytes of the index after it."""

        def change(connection: Connection) -> tuple[T, int]:
            return work(connection, *args, **kwargs), rows.total_bytes(connection)

        answer, self.bytes = await self._file.write(change)
        return answer

    async def _delete_dropped(self) -> None:
        while await self._file.write(rows.delete_dropped):
            self._is_untidy = True

    async def _embed(self, sid: Sid, owner: Tenant, embedder: Embedder) -> None:
        from router.sessions.recall.vectors import pack

        while found := await self._file.read(rows.without_vector, sid, owner, EMBEDDED_AT_ONCE):
            vectors = await embedder.embed([piece.text for piece in found])
            block = pack([rows.place_of(piece.id) for piece in found], vectors)
            await self._change(rows.add_vectors, sid, owner, found, block)


def _by_words(
    connection: Connection, sid: Sid, owner: Tenant, words: Sequence[str], upto: int
) -> list[tuple[int, float]]:
    """Numbers of items, each once, with the share of the query in their best piece; best first."""
    session = rows.find(connection, sid, owner)
    if session is None:
        return []
    ranked = rarity.rank(rows.postings(connection, sid, owner, words, upto), session.pieces)
    best = {number_of(place): share for place, share in reversed(ranked)}
    return [(number, best[number]) for number in _items([place for place, _ in ranked])]


def _by_meaning(connection: Connection, sid: Sid, owner: Tenant, vector: Sequence[float], upto: int) -> list[int]:
    """Numbers of items, each once, best first."""
    from router.sessions.recall.vectors import nearest

    oldest, blocks = rows.vectors(connection, sid, owner, upto)
    return _items(nearest(blocks, vector, oldest, last_place(upto), FUSED_PIECES))


def _items(places: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(map(number_of, places)))[:FUSED]
