"""An estimate finds a cache's size, from what the cache held of prompts of every age."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from router.core.fleet.capacity import LearntCapacity


class Cache:
    """Drops first what was used longest ago."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.held: OrderedDict[int, None] = OrderedDict()

    def use(self, block: int) -> bool:
        was_held = block in self.held
        self.held[block] = None
        self.held.move_to_end(block)
        if len(self.held) > self.blocks:
            self.held.popitem(last=False)
        return was_held


def learn(capacity: LearntCapacity, cache: Cache, lots: random.Random, uses: int, lost: float = 0.0) -> None:
    """Blocks of a working set are used at random; those that the estimate believes held are judged. ``lost``: the share that is
    gone for another reason."""
    believed: OrderedDict[int, None] = OrderedDict()
    for _ in range(uses):
        block = lots.randrange(6 * cache.blocks)
        age = len(believed) - 1 - list(believed).index(block) if block in believed else None
        was_held = cache.use(block) and lots.random() >= lost
        if age is not None and was_held:
            capacity.on_held(age)
        elif age is not None:
            capacity.on_gone(age)
        believed[block] = None
        believed.move_to_end(block)
        while len(believed) > max(1, int(capacity.blocks)):
            believed.popitem(last=False)


@pytest.mark.parametrize("lost", [0.0, 0.1])
@pytest.mark.parametrize("first", [50, 200, 2000])
def test_the_estimate_finds_the_size_of_the_cache_from_below_and_from_above(first: int, lost: float) -> None:
    capacity = LearntCapacity(first)
    learn(capacity, Cache(200), random.Random(1), 6000, lost)
    assert 0.8 * 200 <= capacity.blocks <= 1.25 * 200


def test_the_estimate_follows_a_cache_that_becomes_smaller_and_larger_again() -> None:
    capacity, lots = LearntCapacity(200), random.Random(2)
    for blocks in (50, 300, 100):
        learn(capacity, Cache(blocks), lots, 8000)
        assert 0.8 * blocks <= capacity.blocks <= 1.25 * blocks


def test_a_prompt_that_is_gone_for_another_reason_takes_little_off() -> None:
    capacity = LearntCapacity(1000)
    capacity.on_gone(10)
    assert capacity.blocks == 950
    capacity.on_gone(940)
    assert capacity.blocks == 940
    capacity.on_held(700)
    assert capacity.blocks == 940, "what was held at a young age says nothing"
    capacity.on_held(900)
    assert capacity.blocks == 1125


def test_the_estimate_never_falls_below_a_block() -> None:
    capacity = LearntCapacity(2)
    for _ in range(1000):
        capacity.on_gone(-5)
    assert capacity.blocks == 1
