"""Shares the event loop among connections to workers: large reads are processed in slices, in turn, for some milliseconds at a
time.

A read of 200 KB may hold 70,000 comments or 30,000 chunks. If it were processed at once, all requests would wait. The same
holds for small slices of a hundred connections in one turn of the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SLICE_BYTES = 2 << 10
"""Size of a slice: at worst 700 events or 400 chunks, which take 2 ms."""

TURN_S = 0.002
"""Longest time for slices in one turn of the loop, and one slice more. A request takes some ten turns of the loop."""


class ReadScheduler:
    """One for all connections. Each waits here at most once, with the read that it has, and reads nothing meanwhile. The
    length is the number of connections that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loop = loop
        self._clock = clock
        self._waiting: dict[Callable[[], bool], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, process_slice: Callable[[], bool]) -> None:
        """``process_slice`` returns True if more slices wait."""
        if not self._waiting:
            self._loop.call_soon(self._turn)
        self._waiting[process_slice] = None

    def _turn(self) -> None:
        ends_at = self._clock() + TURN_S
        while self._waiting:
            process_slice = next(iter(self._waiting))
            del self._waiting[process_slice]
            if process_slice():
                self._waiting[process_slice] = None
            if self._clock() >= ends_at:
                break
        if self._waiting:
            self._loop.call_soon(self._turn)
