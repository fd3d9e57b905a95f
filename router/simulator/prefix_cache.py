"""The blocks of one worker's KV cache: decides which blocks a prompt hits and which block is evicted next.

It counts blocks and keeps their hashes, no tensors. A block is *held* by running requests, *idle* (computed, hittable,
evictable) or blank. Idle blocks are evicted in LRU order. A request frees its blocks in reverse, so its tail is evicted
before its head. Must never give out more blocks than the cache has, nor evict a held block.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Holding:
    """The blocks of one running request: hashes of the computed ones in order, counts of the others."""

    hashes: list[int]
    uncomputed: int
    reserved: int
    cached: int = field(default=0)


class PrefixCache:
    """A pool of `blocks` blocks. Each operation is linear in the blocks that it touches."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._uncomputed = 0
        self._reserved = 0

    @property
    def held_blocks(self) -> int:
        return len(self._references) + self._uncomputed

    @property
    def cached_blocks(self) -> int:
        """The number of different blocks that a lookup can hit."""
        return len(self._references) + len(self._idle)

    def match(self, hashes: Sequence[int]) -> int:
        """How many leading blocks of a prompt are cached. Changes nothing, not even the LRU order."""
        matched = 0
        for block in hashes:
            if block not in self._references and block not in self._idle:
                break
            matched += 1
        return matched

    def open(self, hashes: Sequence[int], *, prompt_blocks: int, growth_blocks: int, max_cached: int) -> Holding | None:
        """Take `prompt_blocks` and reserve `growth_blocks` more. At most `max_cached` leading blocks may be hits.

        None, without any change, if too few blocks are free. `grow` takes a reserved block, so a running request never
        finds the cache full.
        """
        cached = self.match(hashes[:max_cached])
        hits = list(hashes[:cached])
        fresh = prompt_blocks - cached
        woken = sum(block in self._idle for block in hits)
        if fresh + growth_blocks + woken > self.blocks - self.held_blocks - self._reserved:
            return None
        for block in hits:
            self._idle.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1
        self._uncomputed += fresh
        self._reserved += growth_blocks
        self._evict()
        return Holding(hits, fresh, growth_blocks, cached)

    def grow(self, holding: Holding) -> None:
        """Turn one reserved block into a held one."""
        holding.reserved -= 1
        holding.uncomputed += 1
        self._reserved -= 1
        self._uncomputed += 1
        self._evict()

    def commit(self, holding: Holding, hashes: Sequence[int]) -> None:
        """Mark computed blocks of the holding as hittable. A block that is cached already is skipped."""
        for block in hashes:
            if holding.uncomputed == 0:
                return
            if block in self._references or block in self._idle:
                continue
            self._references[block] = 1
            holding.hashes.append(block)
            holding.uncomputed -= 1
            self._uncomputed -= 1

    def close(self, holding: Holding) -> None:
        """Free all blocks, the tail first. The holding must not be used again."""
        self._uncomputed -= holding.uncomputed
        self._reserved -= holding.reserved
        for block in reversed(holding.hashes):
            references = self._references[block] - 1
            if references:
                self._references[block] = references
            else:
                del self._references[block]
                self._idle[block] = None

    def reset(self) -> None:
        """Forget every idle block, as a worker's restart does."""
        self._idle.clear()

    def _evict(self) -> None:
        for _ in range(self.held_blocks + len(self._idle) - self.blocks):
            self._idle.popitem(last=False)
