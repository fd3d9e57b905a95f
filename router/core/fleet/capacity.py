"""The size of a worker's cache, for a worker that does not report it: learnt from whether it still held old prompts.

A cache drops the least recently used block first. So the age of a prompt, counted in blocks that were used on the worker since,
bounds the size: the cache is larger than the age of a prompt that was held, and smaller than the age of one that was gone. If
others use the cache too, the router learns the part that is left to it.
"""

from __future__ import annotations

from dataclasses import dataclass

NEAR = 0.8
"""The age of the oldest held prompt counts as this share of the cache. The index remembers no blocks beyond the estimate, so a
larger cache could not show its size otherwise."""

MAX_STEP = 0.05
"""One missing prompt reduces the estimate by at most this share: it may be missing for another reason. With 0.05 the estimate
stays right when one prompt in ten is."""


@dataclass(slots=True)
class LearntCapacity:
    blocks: float
    """The estimate, in blocks of the index."""

    def on_held(self, age_blocks: float) -> None:
        self.blocks = max(self.blocks, age_blocks / NEAR)

    def on_gone(self, age_blocks: float) -> None:
        self.blocks = min(self.blocks, max(age_blocks, (1.0 - MAX_STEP) * self.blocks, 1.0))
