"""Consistent hashing: an order of workers for each key, on which all replicas agree without talking.

The order depends on the workers' names alone. A ring is never mutated: a change of membership builds a new one, which takes
half a millisecond for each worker, so the caller builds it off the event loop if the fleet is large.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import chain

from uhashring import HashRing
from xxhash import xxh3_64_intdigest

from router.core.worker import WorkerName

VIRTUAL_NODES = 160
"""Points of a worker on the ring. The number does not depend on the fleet's size: otherwise a worker that leaves would move the
points of those that stay. A worker's share of the keys varies by about 8 % (1 / √points)."""


def _hash_text(text: str) -> int:
    return xxh3_64_intdigest(text.encode())


class Ring:
    """``positions`` maps each worker's name to its position in the fleet. Placement depends on the names and the key, never on
    positions or on the order in which workers joined."""

    __slots__ = ("_owners", "_points", "_size")

    def __init__(self, positions: Mapping[WorkerName, int]) -> None:
        # Sorted, so that all replicas order two names on one point alike.
        ring = HashRing(sorted(positions), hash_fn=_hash_text, vnodes=VIRTUAL_NODES)
        points: list[tuple[int, WorkerName]] = ring.get_points() if positions else []
        self._points = [point for point, _ in points]
        self._owners = [positions[name] for _, name in points]
        self._size = len(positions)

    def __repr__(self) -> str:
        return f"Ring({self._size} workers)"

    def __len__(self) -> int:
        """How many workers are on the ring."""
        return self._size

    def walk(self, key: int) -> Iterator[int]:
        """Each position once, clockwise from the 64-bit ``key``; lazy.

        The first costs a binary search. All ``n`` cost about ``n · ln n`` steps, so take only as many as are needed.
        """
        start = bisect_left(self._points, key)
        owners = self._owners
        seen: set[int] = set()
        for at in chain(range(start, len(owners)), range(start)):
            position = owners[at]
            if position not in seen:
                seen.add(position)
                yield position
                if len(seen) == self._size:
                    return
