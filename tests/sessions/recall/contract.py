"""The indexes that keep the promise of ``router.sessions.recall.index``. A new one is one line in ``INDEXES``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from router.runtime.sqlite_thread import IN_MEMORY
from router.sessions.recall.index import Embedder, IndexUnavailable, RecallIndex
from router.sessions.recall.postgres import PostgresIndex, PostgresLimits
from router.sessions.recall.sqlite import SqliteIndex
from tests.sessions.recall.postgres_servers import database, shared

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class LetterEmbedder:
    """A text means its letters: as many of each as it has. ``fails``: it cannot be asked."""

    name = "letters"
    dimensions = len(LETTERS)

    def __init__(self) -> None:
        self.fails = False
        self.embedded: list[str] = []

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if self.fails:
            raise IndexUnavailable("no letters today")
        self.embedded += texts
        return [unit([float(text.lower().count(letter)) for letter in LETTERS]) for text in texts]


def unit(vector: Sequence[float]) -> list[float]:
    length = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector] if length else [len(vector) ** -0.5] * len(vector)


@asynccontextmanager
async def sqlite_in_memory(_: Path, embedder: Embedder | None) -> AsyncIterator[RecallIndex]:
    index = await SqliteIndex.open(IN_MEMORY, embedder)
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def sqlite_in_a_file(directory: Path, embedder: Embedder | None) -> AsyncIterator[RecallIndex]:
    index = await SqliteIndex.open(directory / "recall.db", embedder)
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def postgres(_: Path, embedder: Embedder | None) -> AsyncIterator[RecallIndex]:
    with database(shared()) as url:
        index = PostgresIndex(url, embedder, PostgresLimits(search_timeout_s=10, embed_timeout_s=5))
        try:
            yield index
        finally:
            await index.close()


OpenIndex = Callable[[Path, Embedder | None], AbstractAsyncContextManager[RecallIndex]]
"""An empty index, with or without an embedder; the directory is the test's own."""

INDEXES: dict[str, OpenIndex] = {"memory": sqlite_in_memory, "file": sqlite_in_a_file, "postgres": postgres}
KINDS = [pytest.param(name, marks=pytest.mark.system if name == "postgres" else ()) for name in INDEXES]
"""Their names. A server of its own makes a test one of the system's."""
