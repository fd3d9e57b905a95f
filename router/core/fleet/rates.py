"""What the router learns of its workers' speed and of tokenizers. Pure; each new sample makes the older ones weigh less."""

from __future__ import annotations

from dataclasses import dataclass

DECAY = 0.98
"""What a sample weighs after the next one came: the last fifty or so count."""

MIN_SPREAD = 0.25
"""Least variance of the prompts' tokens, over their squared mean, for a line to be told from noise."""

PRIOR_SAMPLES = 3.0
"""As many samples of the whole fleet's mean count for each worker: its own soon outweigh them."""

MIN_SECONDS_PER_TOKEN, MAX_SECONDS_PER_TOKEN = 1e-7, 0.1
"""What a learnt rate is held within: one odd sample must not make a worker look free, or dead."""


@dataclass(slots=True)
class DecayedRatio:
    """Σ numerator / Σ denominator. A ratio of sums and not a mean of ratios: long prompts say more than short ones."""

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
    """Seconds that prefills of so many tokens took, as the sums that a line through them needs.

    The line is ``seconds = fixed + tokens · seconds_per_token`` by least squares: what a request costs whatever its
    length (a step of decoding, the way there and back) must not make short prefills look like slow ones.
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
        """The line's slope, with the fleet's samples beside its own. At most the plain ratio: nothing fixed is negative."""
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
    """What stands for samples before there are any: ``rate`` in tokens/s. It weighs little, and is soon forgotten."""
    tokens = 100.0
    return PrefillTimes(1.0, tokens, tokens / rate, tokens * tokens, tokens * tokens / rate)
