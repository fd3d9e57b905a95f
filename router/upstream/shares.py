"""The loop's time, shared among connections to workers: large reads are taken in slices, in turn, some milliseconds at a time.

A read of 200 KB may hold 70,000 comments or 30,000 chunks. Taken at once, it would keep everybody waiting; and so would the
small slices of a hundred connections, taken in one turn of the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

SHARE_BYTES = 2 << 10
"""Of one slice: at worst 700 events or 400 chunks, which take 2 ms."""

TURN_S = 0.002
"""After that others are served: at most so long and one slice more. A request takes some ten turns of the loop."""


class Taker(Protocol):
    def take_share(self) -> bool:
        """Take one slice. True if more waits."""
        ...


class Shares:
    """One for all connections. Each waits here at most once, with the read that it has, and reads nothing meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loop = loop
        self._clock = clock
        self._waiting: dict[Taker, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, taker: Taker) -> None:
        if not self._waiting:
            self._loop.call_soon(self._turn)
        self._waiting[taker] = None

    def _turn(self) -> None:
        ends_at = self._clock() + TURN_S
        while self._waiting:
            taker = next(iter(self._waiting))
            del self._waiting[taker]
            if taker.take_share():
                self._waiting[taker] = None
            if self._clock() >= ends_at:
                break
        if self._waiting:
            self._loop.call_soon(self._turn)
