"""Learnt speeds of workers, and bytes per token of tokenizers. Pure. Each new sample reduces the weight of the older ones."""

from __future__ import annotations

from dataclasses import dataclass

DECAY = 0.98
"""Weight of a sample after the next one came: about the last fifty count."""

MIN_SPREAD = 0.25
"""Least variance of the prompts' tokens, over their squared mean, at which a line differs from noise."""

PRIOR_SAMPLES = 3.0
"""The fleet's mean counts like this many samples of each worker; its own samples soon outweigh them."""

MIN_SECONDS_PER_TOKEN, MAX_SECONDS_PER_TOKEN = 1e-7, 0.1
"""Bounds of a learnt rate: one odd sample must not make a worker look free, or dead."""


@dataclass(slots=True)
class DecayedRatio:
    """Σ numerator / Σ denominator: a ratio of sums, since long prompts say more than short ones."""

    numerator: float
    denominator: float

    def add(self, numerator: float, denominator: float) -> None:
        self.numerator = self.numerator * DECAY + numerator
        self.denominator = self.denominator * DECAY + denominator

    @property
    def value(self) -> float:
        return self.numerator / self.denominator


@dataclass(slots=True)
class PrefillTimes:
    """Seconds and tokens of prefills, as the sums that a regression line needs.

    The line is ``seconds = fixed + tokens · seconds_per_token`` by least squares: the fixed cost of a request (a step of
    decoding, the network) must not make short prefills look slow.
    """

    samples: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    tokens_squared: float = 0.0
    tokens_by_seconds: float = 0.0

    def add(self, tokens: float, seconds: float) -> None:
        self.samples = self.samples * DECAY + 1.0
        self.tokens = self.tokens * DECAY + tokens
        self.seconds = self.seconds * DECAY + seconds
        self.tokens_squared = self.tokens_squared * DECAY + tokens * tokens
        self.tokens_by_seconds = self.tokens_by_seconds * DECAY + tokens * seconds

    def seconds_per_token(self, fleet: PrefillTimes) -> float:
        """The line's slope, from its own samples and the fleet's. At most the plain ratio: no fixed cost is negative."""
        weight = PRIOR_SAMPLES / fleet.samples
        samples = self.samples + weight * fleet.samples
        tokens = self.tokens + weight * fleet.tokens
        seconds = self.seconds + weight * fleet.seconds
        ratio = slope = seconds / tokens
        spread = samples * (self.tokens_squared + weight * fleet.tokens_squared) - tokens * tokens
        if spread > MIN_SPREAD * tokens * tokens:
            by_seconds = self.tokens_by_seconds + weight * fleet.tokens_by_seconds
            slope = (samples * by_seconds - tokens * seconds) / spread
        slope = min(max(slope, 0.1 * ratio), ratio)
        return min(max(slope, MIN_SECONDS_PER_TOKEN), MAX_SECONDS_PER_TOKEN)


def believed(rate: float) -> PrefillTimes:
    """A light sample of ``rate`` tokens/s, for the time before there are any; it is soon forgotten."""
    tokens = 100.0
    return PrefillTimes(1.0, tokens, tokens / rate, tokens * tokens, tokens * tokens / rate)
