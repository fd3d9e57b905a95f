"""The contract of recall indexes, which find items of a session by words and by meaning. An index mirrors the log: it may lag,
be deleted and be built again. Its failure fails no turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from router.core.request.request import Sid, Tenant


class Passage(NamedTuple):
    """The text of an item. ``number``: of the item in its log, from 1."""

    number: int
    text: str


class IndexUnavailable(Exception):
    """The index does not answer now. The message is for the operator."""


class RecallIndex(Protocol):
    """All calls raise IndexUnavailable. A call sees only the session that it names, and nothing where the owner is another."""

    async def newest(self, sid: Sid, owner: Tenant) -> int:
        """The greatest number in the index; 0: none is."""
        ...

    async def add(self, sid: Sid, owner: Tenant, passages: Sequence[Passage]) -> None:
        """``passages``: in the order of numbers. Passages that are there already stay as they are."""
        ...

    async def search(self, sid: Sid, owner: Tenant, query: str, *, upto: int, limit: int) -> Sequence[int]:
        """Numbers of at most ``limit`` items up to the number ``upto``, best first. A query is text, never syntax."""
        ...

    async def forget(self, sid: Sid, owner: Tenant) -> None:
        """Deletes all of the session."""
        ...

    async def close(self) -> None: ...


class MeasuredIndex(RecallIndex, Protocol):
    """``pending``: calls under way and waiting, ``max_pending`` at most. ``searches_without_meaning``: searches that went by
    words alone, since their query was not embedded in time."""

    @property
    def pending(self) -> int: ...

    @property
    def max_pending(self) -> int: ...

    @property
    def searches_without_meaning(self) -> int: ...


class Embedder(Protocol):
    """Makes vectors of meaning from texts. Vectors of one ``name`` and ``dimensions`` may be compared."""

    name: str
    dimensions: int

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """A vector of unit length for each text. Raises IndexUnavailable."""
        ...
