"""When memory is given back to the system."""

from __future__ import annotations

from router.runtime.memory_trim import GROWN_BYTES, Trimmer


class Heap:
    """``used_bytes`` of ``bytes``; the rest is given back when it is trimmed."""

    def __init__(self) -> None:
        self.bytes = self.used_bytes = 100
        self.trims = 0

    def trim(self) -> None:
        self.trims += 1
        self.bytes = self.used_bytes


async def test_what_a_wave_took_is_given_back() -> None:
    heap = Heap()
    trimmer = Trimmer(lambda: heap.bytes, heap.trim)
    heap.bytes = 100 + GROWN_BYTES
    await trimmer.check()
    assert (heap.trims, heap.bytes) == (1, 100)


async def test_little_is_kept() -> None:
    heap = Heap()
    trimmer = Trimmer(lambda: heap.bytes, heap.trim)
    heap.bytes = 99 + GROWN_BYTES
    await trimmer.check()
    assert heap.trims == 0


async def test_what_is_freed_behind_a_look_is_given_back_at_the_next() -> None:
    heap = Heap()
    trimmer = Trimmer(lambda: heap.bytes, heap.trim)
    heap.bytes = heap.used_bytes = 100 + GROWN_BYTES
    await trimmer.check()
    heap.used_bytes = 100
    await trimmer.check()
    assert heap.bytes == 100
