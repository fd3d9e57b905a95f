"""Where workers come from. Each source answers with its present addresses; one that cannot be read keeps its last answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from router.core.worker import WorkerAddress


class Unreadable(Exception):
    """The source cannot be read at the moment, or holds something that is not a worker."""


class Source(Protocol):
    kind: ClassVar[str]
    """A label of the counter of failures."""

    async def read(self) -> Sequence[WorkerAddress]:
        """The present addresses. Raises Unreadable."""
        ...
