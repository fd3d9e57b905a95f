"""What is freed goes back to the system: glibc keeps a wave's memory for ever where anything small behind it is still used.

Kept are a few megabytes, since to fetch them anew for each body would double what it costs. Other C libraries do without.

Since the collector of cycles seldom looks at what is old, whatever comes for each connection or request must make no cycle:
``untie_transport`` and ``untie_error`` break those that libraries make.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize
from typing import Any, cast

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers from malloc.h."""
KEPT_FREE_BYTES, LARGE_BYTES = 16 << 20, 512 << 10
"""What is kept at the end of the heap; and from what size on a block is returned by itself, since it comes seldom."""

LOOK_EVERY_S = 5.0
GROWN_BYTES = 16 << 20
"""Of resident memory, since the start: from there on it is trimmed at each look. That takes 0.15 ms for each megabyte which was
freed since the last, and 0.05 ms where nothing was."""


def keep_some() -> None:
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def trim() -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * getpagesize()
    except OSError:
        return 0


def untie_transport(transport: asyncio.BaseTransport | None) -> None:
    """Of a connection that was lost. asyncio's own holds a method of itself, until Python 3.12."""
    if hasattr(transport, "_read_ready_cb"):
        cast(Any, transport)._read_ready_cb = None  # noqa: SLF001


def untie_error(error: BaseException | None) -> None:
    """Of an error that was answered, and whose traceback nobody will read: one of its frames may hold it, and all of them hold
    the request."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        untie_error(error.__cause__)
        error = error.__context__


class Trimmer:
    """Looks now and then. How much is free cannot be told: what a trim has returned counts as free to glibc all the same."""

    def __init__(self, measure: Callable[[], int] = resident_bytes, release_later: Callable[[], None] = trim) -> None:
        self._measure = measure
        self._give_back = release_later
        self._first_bytes = measure()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        if self._measure() - self._first_bytes >= GROWN_BYTES:
            await asyncio.to_thread(self._give_back)  # without the interpreter's lock
