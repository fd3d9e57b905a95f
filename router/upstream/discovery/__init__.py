"""Sources of workers. A source returns its present addresses. If it cannot be read, its last addresses stay valid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from router.core.worker import WorkerAddress


class Unreadable(Exception):
    """The source cannot be read now, or holds something that is not a worker."""


class Source(Protocol):
    kind: ClassVar[str]
    """A label of the counter of failures."""

    async def read(self) -> Sequence[WorkerAddress]:
        """The present addresses. Raises Unreadable."""
        ...


@runtime_checkable
class LiveSource(Source, Protocol):
    """A source that follows changes and reports them at once. ``run`` must be running."""

    @property
    def restarts(self) -> int:
        """Watches that broke."""
        ...

    async def run(self) -> None:
        """Until cancelled."""
        ...
