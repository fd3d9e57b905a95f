"""Placement is a promise: by names alone, even, and disturbed only where a worker came or went."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from router.core.fleet.ring import Ring
from router.core.worker import WorkerName

PLACEMENTS = Path(__file__).with_name("ring_placements.txt")
"""A line a key: the key in hexadecimal, and the first three of ten workers."""

KEYS = [xxh3_64_intdigest(b"key %d" % number) for number in range(1000)]
NAMES = [WorkerName(f"w-{number:02d}") for number in range(10)]


def place(names: list[WorkerName]) -> Ring:
    return Ring({name: position for position, name in enumerate(names)})


def test_a_thousand_keys_stay_where_they_are_promised() -> None:
    """A change here moves every conversation of every fleet at the next upgrade."""
    ring = place(NAMES)
    for line in PLACEMENTS.read_text().splitlines():
        key, *names = line.split()
        assert [NAMES[position] for position in islice(ring.walk(int(key, 16)), 3)] == names


def test_every_worker_comes_once() -> None:
    ring = place(NAMES)
    for key in [*KEYS[:50], 0, (1 << 64) - 1]:
        assert sorted(ring.walk(key)) == list(range(10))


def test_order_depends_on_names_and_not_on_positions() -> None:
    ours, theirs = place(NAMES), place(NAMES[::-1])
    for key in KEYS[:100]:
        assert list(ours.walk(key)) == [9 - position for position in theirs.walk(key)]


def test_first_choice_stays_when_another_worker_leaves() -> None:
    ring = place(NAMES)
    for gone in range(10):
        rest = Ring({name: position for position, name in enumerate(NAMES) if position != gone})
        for key in KEYS[:100]:
            assert list(rest.walk(key)) == [position for position in ring.walk(key) if position != gone]


def test_a_worker_that_joins_takes_keys_only_for_itself() -> None:
    ring, larger = place(NAMES), place([*NAMES, WorkerName("w-new")])
    moved = [(next(ring.walk(key)), next(larger.walk(key))) for key in KEYS]
    assert {after for before, after in moved if before != after} == {10}


@pytest.mark.parametrize("workers", [2, 8, 50])
def test_no_worker_has_much_more_than_its_share_of_keys(workers: int) -> None:
    ring = place([WorkerName(f"w-{number}") for number in range(workers)])
    firsts = Counter(next(ring.walk(xxh3_64_intdigest(b"%d" % number))) for number in range(20_000))
    assert len(firsts) == workers
    assert max(firsts.values()) < 1.35 * 20_000 / workers


def test_an_empty_ring_walks_nowhere() -> None:
    ring = Ring({})
    assert len(ring) == 0
    assert list(ring.walk(7)) == []
