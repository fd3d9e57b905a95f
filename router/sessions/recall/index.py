"""The contract of indexes: what a session's items say, by words and by meaning. An index is a mirror of the log: it may be
behind, be thrown away and be built again. It belongs to no turn, and its failure fails none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from router.core.request.request import Sid, Tenant


class Passage(NamedTuple):
    """What an item says, as text. ``number``: the item's in its log, from 1."""

    number: int
    text: str


class IndexUnavailable(Exception):
    """It cannot be asked now. The message is for the operator."""


class RecallIndex(Protocol):
    """All calls raise IndexUnavailable. What one session's calls see is that session's alone, and its owner's: with another
    owner there is nothing, whatever the query."""

    async def newest(self, sid: Sid, owner: Tenant) -> int:
        """The greatest number indexed; 0: nothing is."""
        ...

    async def add(self, sid: Sid, owner: Tenant, passages: Sequence[Passage]) -> None:
        """In the order of numbers. Those that are there already stay as they are."""
        ...

    async def search(self, sid: Sid, owner: Tenant, query: str, *, upto: int, limit: int) -> Sequence[int]:
        """Numbers of at most ``limit`` items up to the number ``upto``, best first. Any query is text, never syntax."""
        ...

    async def forget(self, sid: Sid, owner: Tenant) -> None:
        """All of the session."""
        ...

    async def close(self) -> None: ...


class MeasuredIndex(RecallIndex, Protocol):
    """``pending``: calls that it is at, or that wait for it, of ``max_pending``. ``searches_without_meaning``: those that went
    by words alone, since their query was not embedded in time."""

    @property
    def pending(self) -> int: ...

    @property
    def max_pending(self) -> int: ...

    @property
    def searches_without_meaning(self) -> int: ...


class Embedder(Protocol):
    """Texts → vectors of meaning. ``name`` and ``dimensions`` say which vectors may be compared."""

    name: str
    dimensions: int

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Of unit length, one each. Raises IndexUnavailable."""
        ...
