"""Workers named in the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from router.core.worker import WorkerAddress, parse_address


class StaticSource:
    """Raises ValueError for a URL that cannot be a worker's."""

    kind: ClassVar[str] = "static"

    def __init__(self, urls: Iterable[str]) -> None:
        self._addresses = tuple(parse_address(url) for url in urls)

    async def read(self) -> Sequence[WorkerAddress]:
        return self._addresses
