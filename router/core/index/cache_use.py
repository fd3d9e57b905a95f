"""How many prompt tokens were cached, how many were not, and why: for each worker since it joined, and for all requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

NEW: Final = "new"
ELSEWHERE: Final = "elsewhere"
GONE: Final = "gone"
"""Why a token was computed: no worker was believed to have it; another worker than the chosen one was; or the chosen one was,
and had evicted it."""


def missed_tokens(prompt: float, best: float, predicted: float, actual: float) -> dict[str, float]:
    """By reason, the tokens of a prompt that were computed; their sum is ``prompt - actual``. ``best``: tokens that the best
    worker was believed to have; ``predicted``: the chosen worker. All are tokens as the worker counts them.

    >>> missed_tokens(prompt=1000, best=800, predicted=500, actual=400)
    {'new': 200, 'elsewhere': 300, 'gone': 100}
    """
    actual = min(actual, prompt)
    predicted = min(predicted, prompt)
    best = min(max(best, predicted), prompt)
    return {
        NEW: prompt - max(best, actual),
        ELSEWHERE: max(best - max(predicted, actual), 0),
        GONE: max(predicted - actual, 0),
    }


@dataclass(slots=True)
class CacheUse:
    """One worker's cache. ``requests``: attempts that were sent there. Tokens: of answers that reported cached tokens.
    ``saved_s``: seconds of prefill that its cache saved, at its learnt rate."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    saved_s: float = 0.0


@dataclass(slots=True)
class CacheMisses:
    """Sums over all requests whose worker reported cached tokens. ``tokens``: computed tokens by reason."""

    prompt_tokens: float = 0.0
    predicted_tokens: float = 0.0
    cached_tokens: float = 0.0
    tokens: dict[str, float] = field(default_factory=lambda: dict.fromkeys((NEW, ELSEWHERE, GONE), 0.0))

    def add(self, prompt: float, best: float, predicted: float, actual: float) -> None:
        self.prompt_tokens += prompt
        self.predicted_tokens += min(predicted, prompt)
        self.cached_tokens += actual
        for reason, tokens in missed_tokens(prompt, best, predicted, actual).items():
            self.tokens[reason] += tokens
