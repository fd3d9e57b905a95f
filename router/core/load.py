"""What a worker says of its load, and what the router learns of its speed. Pure: times are passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One read of a worker's /metrics. Counts are requests; None where the worker does not say."""

    running: int
    waiting: int
    kv_cache_usage: float
    """0 … 1."""
    prefilling_tokens: float | None
    """Uncached tokens that were scheduled and whose first token is not out: looked up in the cache, not found there, and
    not computed to the end. Aborted requests may leave some behind for ever, so this is a hint."""
    cache_tokens: int | None
    process_start_time: float | None
    """Unix seconds; another value than before means another process, whose cache is empty."""


@dataclass(slots=True)
class DecayedRatio:
    """Σ numerator / Σ denominator, where each new sample makes the older ones weigh ``decay`` as much.

    A ratio of sums and not a mean of ratios: long prompts say more of a rate than short ones.
    ``initial`` weighs as much as one sample of ``initial_weight`` in the denominator.
    """

    initial: float
    initial_weight: float
    decay: float = 0.98
    numerator: float = 0.0
    denominator: float = 0.0

    def __post_init__(self) -> None:
        self.numerator = self.initial * self.initial_weight
        self.denominator = self.initial_weight

    def add(self, numerator: float, denominator: float) -> None:
        self.numerator = self.numerator * self.decay + numerator
        self.denominator = self.denominator * self.decay + denominator

    @property
    def value(self) -> float:
        return self.numerator / self.denominator


MIN_LEARNT_TOKENS = 256
"""A shorter prefill says more of the fixed costs of a request than of the rate."""

MIN_SECONDS_PER_TOKEN, MAX_SECONDS_PER_TOKEN = 1e-7, 0.1
"""What a learnt rate is held within: one odd sample must not make a worker look free, or dead."""
