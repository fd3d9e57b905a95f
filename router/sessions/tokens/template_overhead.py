"""Learns the tokens that a model's chat template adds to its messages, from workers' counts. Pure.

A template puts a few tokens around each message (``<|im_start|>user … <|im_end|>``) and some around all of them (a beginning, a
preamble, the prompt to answer). So it adds ``per_message · m + fixed`` to ``m`` messages: the line, by least squares, through
what workers counted beyond the messages' own texts. Outliers (an image, another tokenizer, an estimated text) are drawn in to a
few times the usual error before they count, as Huber's estimator does (1964).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DECAY = 0.98
"""Weight of a sample after the next one: the last fifty or so count."""

PRIOR_SAMPLES = 0.01
"""Constant weight of the first belief. It decides where all prompts had equally many messages."""

MAX_PER_MESSAGE, MAX_FIXED = 64.0, 4096.0
"""Most that a template adds. A prompt with more was counted wrongly, or has media."""

MAX_ERRORS = 4.0
"""Samples are drawn in to so many usual errors."""

ERROR_STEP = 1.2
"""Factor by which the usual error grows with a sample beyond it, and shrinks with one within it. So it approaches the median,
however far outliers are."""

FIRST_ERROR, MIN_ERROR = 256.0, 0.5
"""The usual error at first, and the least one, in tokens."""


class Overhead(NamedTuple):
    """Tokens."""

    per_message: float
    fixed: float

    def of(self, messages: int) -> float:
        return self.per_message * messages + self.fixed


NO_OVERHEAD = Overhead(0.0, 0.0)
BELIEVED = Overhead(4.0, 3.0)
"""About ChatML's, until there are samples."""


@dataclass(slots=True)
class OverheadFit:
    """The sums of the regression. Each sample weighs less with every later one. O(1) a sample."""

    samples: float = 0.0
    messages: float = 0.0
    messages_squared: float = 0.0
    tokens: float = 0.0
    messages_by_tokens: float = 0.0
    error: float = FIRST_ERROR
    overhead: Overhead = BELIEVED

    def add(self, messages: int, added_tokens: float) -> None:
        """``added_tokens``: the worker's count of a prompt of so many messages, less their own texts. Impossible values are
        ignored."""
        if messages < 1 or abs(added_tokens) > MAX_PER_MESSAGE * messages + MAX_FIXED:
            return
        expected = self.overhead.of(messages)
        bound = MAX_ERRORS * self.error
        error = min(max(added_tokens - expected, -bound), bound)
        step = ERROR_STEP if abs(error) > self.error else 1.0 / ERROR_STEP
        self.error = min(max(self.error * step, MIN_ERROR), MAX_FIXED)
        self._weigh(float(messages), expected + error)
        self.overhead = self._solve()

    def _weigh(self, messages: float, tokens: float) -> None:
        self.samples = self.samples * DECAY + 1.0
        self.messages = self.messages * DECAY + messages
        self.messages_squared = self.messages_squared * DECAY + messages * messages
        self.tokens = self.tokens * DECAY + tokens
        self.messages_by_tokens = self.messages_by_tokens * DECAY + messages * tokens

    def _solve(self) -> Overhead:
        """Solves the normal equations. The first belief keeps them from being singular. If one figure is out of bounds, it is
        set to the bound and the other is solved anew."""
        squared, samples = self.messages_squared + PRIOR_SAMPLES, self.samples + PRIOR_SAMPLES
        by_tokens = self.messages_by_tokens + PRIOR_SAMPLES * BELIEVED.per_message
        tokens = self.tokens + PRIOR_SAMPLES * BELIEVED.fixed
        determinant = squared * samples - self.messages * self.messages
        per_message = (samples * by_tokens - self.messages * tokens) / determinant
        if 0.0 <= (fixed := (squared * tokens - self.messages * by_tokens) / determinant) <= MAX_FIXED:
            per_message = min(max(per_message, 0.0), MAX_PER_MESSAGE)
            fixed = (tokens - self.messages * per_message) / samples
        else:
            fixed = min(max(fixed, 0.0), MAX_FIXED)
            per_message = (by_tokens - self.messages * fixed) / squared
        return Overhead(min(max(per_message, 0.0), MAX_PER_MESSAGE), min(max(fixed, 0.0), MAX_FIXED))
