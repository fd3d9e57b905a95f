"""What counting is tested with: counters that do as they are told, and a note of what was observed."""

from __future__ import annotations

from collections import Counter as Sums
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from router.sessions.tokens.cache import CountCache
from router.sessions.tokens.counter import CannotCount, Cause, Counter, CounterName
from router.sessions.tokens.counts import Means, TokenCounts

MEDIA_TOKENS = 1000


class FakeFleet:
    """Knows the models that begin with ``m``, at four bytes a token."""

    def knows(self, model: str) -> bool:
        return model.startswith("m")

    def bytes_per_token(self, model: str) -> float:
        return 4.0


class Notes:
    def __init__(self) -> None:
        self.tokens: Sums[Means] = Sums()
        self.calls: Sums[CounterName] = Sums()
        self.fallbacks: Sums[Cause] = Sums()
        self.errors: list[tuple[str, float]] = []

    def counted(self, means: Means, tokens: int) -> None:
        self.tokens[means] += tokens

    def took(self, counter: CounterName, seconds: float) -> None:
        assert seconds >= 0
        self.calls[counter] += 1

    def fell_back(self, cause: Cause) -> None:
        self.fallbacks[cause] += 1

    def erred(self, model: str, ratio: float) -> None:
        self.errors.append((model, ratio))


class Words:
    """Counts words; keeps what it was asked."""

    name: CounterName = "tiktoken"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.mistake: CannotCount | None = None

    async def count(self, model: str, texts: Sequence[str]) -> Sequence[int]:
        self.asked += texts
        if self.mistake is not None:
            raise self.mistake
        return [len(text.split()) for text in texts]


def make_counts(
    counter_of: Callable[[str], Counter | None],
    notes: Notes | None = None,
    media_tokens: int = MEDIA_TOKENS,
    max_known: int = 100,
) -> TokenCounts:
    threads = ThreadPoolExecutor(1)
    return TokenCounts(
        media_tokens, counter_of, FakeFleet(), CountCache(max_known), notes or Notes(), lambda: 1.0, threads
    )
