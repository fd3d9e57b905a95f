"""Counts the tokens of messages and prompts: exactly where the model's tokenizer is known, else by an estimate. A text that
cannot be counted now is estimated, and logged once a model. Knows no template: what one adds is learnt from workers' counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from router.sessions.tokens.cache import CountCache
from router.sessions.tokens.counter import CannotCount, Cause, Counter, CounterName
from router.sessions.tokens.template_overhead import NO_OVERHEAD, Overhead, OverheadFit
from router.sessions.tokens.texts import OwnText, own_text

log = logging.getLogger("warmroute.tokens")

Means = CounterName | Literal["estimate", "cache"]


class Calibration(Protocol):
    """Figures of models without a tokenizer."""

    def knows(self, model: str) -> bool:
        """True if some worker ever listed it."""
        ...

    def bytes_per_token(self, model: str) -> float: ...


class Observer(Protocol):
    def counted(self, means: Means, tokens: int) -> None: ...

    def took(self, counter: CounterName, seconds: float) -> None: ...

    def fell_back(self, cause: Cause) -> None: ...

    def erred(self, model: str, ratio: float) -> None:
        """Called with the error of a prompt's count, as a share of what its worker counted."""
        ...


MAX_EXACT_BYTES = 1 << 20
"""Most bytes of one turn's new texts that are counted exactly. The rest is estimated."""


class TokenCounts:
    """One for the process. Owns the counters and their ``threads``.

    ``media_tokens``: tokens assumed for a part that is no text. ``counter_of``: a model's counter; None: its tokens are
    estimated. It is asked of listed models only.
    """

    def __init__(
        self,
        media_tokens: int,
        counter_of: Callable[[str], Counter | None],
        calibration: Calibration,
        known: CountCache,
        observer: Observer,
        clock: Callable[[], float],
        threads: ThreadPoolExecutor,
    ) -> None:
        self._media_tokens = media_tokens
        self._find_counter = counter_of
        self._calibration = calibration
        self.known = known
        self._observer = observer
        self._clock = clock
        self._threads = threads
        self._counters: dict[str, Counter | None] = {}
        self._fits: dict[str, OverheadFit] = {}
        self._told: set[str] = set()

    async def count(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """Tokens of each message's texts and media, without what a template adds."""
        texts = list(map(own_text, messages))
        counter = self._counter(model)
        counts = await self._count_texts(model, counter, texts) if counter is not None else {}
        estimated = 0
        for at, own in enumerate(texts):
            if at not in counts:
                counts[at] = self._estimate_text(model, own.text)
                estimated += counts[at]
        if estimated:
            self._observer.counted("estimate", estimated)
        return [counts[at] + own.media * self._media_tokens for at, own in enumerate(texts)]

    def is_exact(self, model: str) -> bool:
        """True if the model's tokens are counted and not estimated from bytes."""
        return self._counter(model) is not None

    def estimate(self, model: str, n_bytes: int) -> int:
        """Tokens of so many bytes of a prompt; at least 1 for any byte."""
        return max(1, round(n_bytes / self._calibration.bytes_per_token(model))) if n_bytes else 0

    def overhead(self, model: str) -> Overhead:
        """Tokens that the chat template adds. None where tokens are estimated, since whole prompts teach bytes per token."""
        if self._counter(model) is None:
            return NO_OVERHEAD
        fit = self._fits.get(model)
        return OverheadFit().overhead if fit is None else fit.overhead

    def total(self, model: str, counted_tokens: int, messages: int) -> int:
        """Tokens of a prompt with its template. ``counted_tokens``: of all its texts and tools."""
        return max(0, round(counted_tokens + self.overhead(model).of(messages)))

    def learn(self, model: str, counted_tokens: int, messages: int, prompt_tokens: int) -> None:
        """``prompt_tokens``: as the worker counted that prompt."""
        if prompt_tokens <= 0 or messages <= 0 or not self._calibration.knows(model):
            return
        off = abs(self.total(model, counted_tokens, messages) - prompt_tokens)
        self._observer.erred(model, off / prompt_tokens)
        if self._counter(model) is not None:
            self._fits.setdefault(model, OverheadFit()).add(messages, prompt_tokens - counted_tokens)

    async def aclose(self) -> None:
        """Does not wait for running threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _counter(self, model: str) -> Counter | None:
        """Remembered for listed models only, since clients may invent names."""
        if model not in self._counters:
            if not self._calibration.knows(model):
                return None
            self._counters[model] = self._find_counter(model)
        return self._counters[model]

    def _estimate_text(self, model: str, text: str) -> int:
        return self.estimate(model, len(text.encode()))

    async def _count_texts(self, model: str, counter: Counter, texts: Sequence[OwnText]) -> dict[int, int]:
        """Counts by index, of the texts that could be counted exactly."""
        counts: dict[int, int] = {}
        asked: list[tuple[int, bytes]] = []
        bytes_left = MAX_EXACT_BYTES
        for at, (text, _) in enumerate(texts):
            data = text.encode()
            key = self.known.key(model, data)
            tokens = self.known.get(key) if data else 0
            if tokens is not None:
                counts[at] = tokens
            elif len(data) <= bytes_left:
                bytes_left -= len(data)
                asked.append((at, key))
            else:
                self._fall_back(model, "too_large", "more new text than one turn may count exactly")
        if remembered := sum(counts.values()):
            self._observer.counted("cache", remembered)
        if asked:
            exact = await self._ask(model, counter, [texts[at].text for at, _ in asked])
            for (at, key), tokens in zip(asked, exact, strict=False):
                counts[at] = tokens
                self.known.put(key, tokens)
        return counts

    async def _ask(self, model: str, counter: Counter, texts: Sequence[str]) -> Sequence[int]:
        """Counts of the texts; empty: they cannot be counted."""
        began_at = self._clock()
        try:
            counts = await counter.count(model, texts)
        except CannotCount as error:
            self._fall_back(model, error.cause, str(error))
            return ()
        self._observer.took(counter.name, self._clock() - began_at)
        self._observer.counted(counter.name, sum(counts))
        return counts

    def _fall_back(self, model: str, cause: Cause, why: str) -> None:
        self._observer.fell_back(cause)
        if model not in self._told:
            self._told.add(model)
            log.warning("tokens are estimated", extra={"model": model, "cause": cause, "why": why})
