"""What a model's chat template adds to its messages, learnt from what workers count. Pure.

A template puts a few tokens around each message (``<|im_start|>user … <|im_end|>``) and some around all of them (a beginning,
a preamble, the prompt to answer), so of ``m`` messages it adds ``per_message · m + fixed``: the line through what workers
counted beyond the messages' own texts, by least squares. What is odd (an image, a worker that counts otherwise, a text that
was estimated) is drawn in to a few times the usual error before it counts, as Huber's estimator does (1964).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DECAY = 0.98
"""What a sample weighs after the next one came: the last fifty or so count."""

PRIOR_SAMPLES = 0.01
"""What the first belief weighs for ever: enough to divide what was seen where all prompts had equally many messages."""

MAX_PER_MESSAGE, MAX_FIXED = 64.0, 4096.0
"""No template adds more: a prompt that seems to was counted wrongly, or holds what is no text."""

MAX_ERRORS = 4.0
"""Samples further off than so many usual errors are drawn in to there."""

ERROR_STEP = 1.2
"""By this factor the usual error goes up or down with each sample beyond or within it: so it comes to the median, however far
off the odd ones are."""

FIRST_ERROR, MIN_ERROR = 256.0, 0.5
"""The usual error before anything was seen, and the least one, in tokens."""


class Overhead(NamedTuple):
    """Tokens."""

    per_message: float
    fixed: float

    def of(self, messages: int) -> float:
        return self.per_message * messages + self.fixed


NO_OVERHEAD = Overhead(0.0, 0.0)
BELIEVED = Overhead(4.0, 3.0)
"""ChatML's, roughly; until there are samples."""


@dataclass(slots=True)
class OverheadFit:
    """The sums that the line needs, each sample weighing less with every one after it. O(1) for a sample."""

    samples: float = 0.0
    messages: float = 0.0
    messages_squared: float = 0.0
    tokens: float = 0.0
    messages_by_tokens: float = 0.0
    error: float = FIRST_ERROR
    overhead: Overhead = BELIEVED

    def add(self, messages: int, added_tokens: float) -> None:
        """``added_tokens``: what a worker counted of a prompt of so many messages, less their own texts. What no template
        does changes nothing."""
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
        """The two normal equations, with the first belief beside them, which keeps them from being singular. Where one of the
        two comes out as no template has it, it is held at its bound, and the other one is found anew."""
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
