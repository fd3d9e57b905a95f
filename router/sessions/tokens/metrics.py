"""Tokens of sessions' messages: what counts them, how long that takes, and how far off the counts are."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from router.runtime.metrics import MAX_LABEL_VALUES, OTHER, Row, gauge
from router.sessions.tokens.cache import CountCache

COUNTERS = ("worker", "tokenizer_json", "tiktoken")
MEANS = (*COUNTERS, "estimate", "cache")
CAUSES = ("no_worker", "timeout", "worker", "tokenizer", "too_large")
DURATION_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
ERROR_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class TokenMetrics:
    """``is_known(model)`` says whether a model's name may become a label."""

    def __init__(self, registry: CollectorRegistry, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known
        tokens = Counter(
            "warmroute_counted_tokens",
            "Tokens of sessions' messages, by what counted them.",
            ("counter",),
            registry=registry,
        )
        durations = Histogram(
            "warmroute_token_count_seconds",
            "Time to count the tokens of a turn's texts.",
            ("counter",),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        fallbacks = Counter(
            "warmroute_token_count_fallbacks",
            "Texts or turns whose tokens were estimated because they could not be counted, by cause.",
            ("cause",),
            registry=registry,
        )
        self._errors = Histogram(
            "warmroute_prompt_tokens_error_ratio",
            "Error of the router's count of a prompt's tokens, as a share of what its worker counted.",
            ("model",),
            buckets=ERROR_BUCKETS,
            registry=registry,
        )
        self._tokens = {means: tokens.labels(means) for means in MEANS}
        self._durations = {counter: durations.labels(counter) for counter in COUNTERS}
        self._fallbacks = {cause: fallbacks.labels(cause) for cause in CAUSES}
        self._error_of: dict[str, Histogram] = {OTHER: self._errors.labels(OTHER)}

    def counted(self, means: str, tokens: int) -> None:
        self._tokens[means].inc(tokens)

    def took(self, counter: str, seconds: float) -> None:
        self._durations[counter].observe(seconds)

    def fell_back(self, cause: str) -> None:
        self._fallbacks[cause].inc()

    def erred(self, model: str, ratio: float) -> None:
        errors = self._error_of.get(model)
        if errors is None:
            label = model if len(self._error_of) <= MAX_LABEL_VALUES and self._is_known(model) else OTHER
            errors = self._error_of[label] = self._errors.labels(label)
        errors.observe(ratio)


def count_rows(known: CountCache) -> Iterable[Row]:
    return (
        gauge("known_token_counts", "Texts whose token counts are remembered.", lambda: len(known)),
        gauge("max_known_token_counts", "Most texts whose token counts are remembered.", lambda: known.max_size),
    )
