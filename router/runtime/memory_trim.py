"""Returns freed memory to the system. glibc keeps the memory of a wave of requests for ever if anything small after it is
still used. Some megabytes are kept, since each body would pay twice to fetch them anew. Other C libraries need none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Constants of malloc.h."""
KEPT_FREE_BYTES, LARGE_BYTES = 16 << 20, 512 << 10
"""Bytes that stay at the end of the heap, and the size from which glibc returns a block by itself. Such blocks are rare."""

CHECK_EVERY_S = 5.0
GROWN_BYTES = 16 << 20
"""Growth of resident memory since the start from which each check trims. A trim takes 0.15 ms for each megabyte freed since
the last one, and 0.05 ms if there is none."""


def keep_some() -> None:
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def trim() -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """0 where the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * getpagesize()
    except OSError:
        return 0


class Trimmer:
    """Trims at intervals. How much memory is free cannot be measured: glibc also counts what a trim has returned as free."""

    def __init__(self, measure: Callable[[], int] = resident_bytes, trim: Callable[[], None] = trim) -> None:
        self._measure = measure
        self._trim = trim
        self._first_bytes = measure()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            await self.check()

    async def check(self) -> None:
        if self._measure() - self._first_bytes >= GROWN_BYTES:
            await asyncio.to_thread(self._trim)  # malloc_trim releases the interpreter's lock
