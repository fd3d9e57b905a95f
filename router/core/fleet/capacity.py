"""How large a worker's cache is, where the worker does not say: learnt from what of old prompts it still held.

A cache drops first what was used longest ago. So the age of a prompt, in blocks that were used on the worker since, tells how
large the cache is: a prompt that was still held shows that the cache is larger than its age, and one that was gone that it is
smaller. Where others use the cache as well, what is learnt is the part that is left to this router.
"""

from __future__ import annotations

from dataclasses import dataclass

NEAR = 0.8
"""The oldest prompt that was held is taken for at most this share of the cache. Blocks beyond the estimate are not remembered,
so a cache that is larger could not show it otherwise."""

MAX_STEP = 0.05
"""What one prompt that was gone takes off at most: it may be gone for another reason. With 0.05 the estimate stays right where
one in ten is."""


@dataclass(slots=True)
class LearntCapacity:
    blocks: float
    """The estimate, in blocks of the index."""

    def on_held(self, age_blocks: float) -> None:
        self.blocks = max(self.blocks, age_blocks / NEAR)

    def on_gone(self, age_blocks: float) -> None:
        self.blocks = min(self.blocks, max(age_blocks, (1.0 - MAX_STEP) * self.blocks, 1.0))
