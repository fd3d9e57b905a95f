"""Where workers come from. Each source answers with its present addresses; one that cannot be read keeps its last answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from router.core.worker import WorkerAddress


class Unreadable(Exception):
    """The source cannot be read at the moment, or holds something that is not a worker."""


class Source(Protocol):
    kind: ClassVar[str]
    """A label of the counter of failures."""

    async def read(self) -> Sequence[WorkerAddress]:
        """The present addresses. Raises Unreadable."""
        ...


@runtime_checkable
class LiveSource(Source, Protocol):
    """One that is told of changes, and wakes the keeper; ``run`` must be running. ``restarts``: watches that broke."""

    restarts: int

    async def run(self) -> None:
        """Until cancelled."""
        ...
