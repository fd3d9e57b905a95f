"""Builds the counters of all models from the configuration, and loads their tokenizers at the start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from router.config.schema import MODELS, Config, ConfigError
from router.config.sessions import ESTIMATE, WORKER
from router.core.fleet.fleet import Fleet
from router.proxy.ports import Upstream
from router.sessions.tokens.cache import CountCache
from router.sessions.tokens.counter import Counter
from router.sessions.tokens.counts import Observer, TokenCounts
from router.sessions.tokens.local import LocalCounter
from router.sessions.tokens.vocabularies import Unusable, load_tiktoken, load_tokenizer_json
from router.sessions.tokens.worker import WorkerCounter

MAX_THREADS = 2
"""Threads that count larger texts; others wait."""

MAX_KNOWN = 10_000
"""Texts whose counts are remembered."""


async def open_counts(
    config: Config, fleet: Fleet, upstream: Upstream, observer: Observer, clock: Callable[[], float]
) -> TokenCounts:
    """Raises ConfigError for a tokenizer that is missing."""
    tokens = config.tokens
    threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="tokens")
    counters: dict[str, Counter] = {}
    for key, tokenizer in _tokenizers(config):
        if tokenizer in counters:
            continue
        if tokenizer == WORKER:
            counters[tokenizer] = WorkerCounter(fleet, upstream)
        else:
            try:
                counters[tokenizer] = await asyncio.to_thread(_load, tokenizer, config, threads)
            except Unusable as error:
                raise ConfigError(f"{key}={tokenizer!r}: {error}") from None
    return TokenCounts(
        tokens.media_tokens,
        lambda model: counters.get(config.tokenizer_of(model)),
        fleet.learning,
        CountCache(MAX_KNOWN),
        observer,
        clock,
        threads,
    )


def _tokenizers(config: Config) -> Iterator[tuple[str, str]]:
    """Tokenizers to load, each with its setting."""
    named = {f"{MODELS}.{name}": model.tokenizer for name, model in config.models.items()}
    for section, tokenizer in {"tokens": config.tokens.tokenizer, **named}.items():
        if tokenizer not in ("", ESTIMATE):
            yield f"{section}.tokenizer", tokenizer


def _load(tokenizer: str, config: Config, threads: ThreadPoolExecutor) -> LocalCounter:
    """Raises Unusable."""
    tokens = config.tokens
    scheme, separator, encoding = tokenizer.partition(":")
    if separator and scheme == "tiktoken":
        directory = Path(tokens.vocabulary_dir) if tokens.vocabulary_dir else None
        return LocalCounter("tiktoken", load_tiktoken(encoding, directory), threads)
    count_text = load_tokenizer_json(Path(tokenizer))
    return LocalCounter("tokenizer_json", count_text, threads)
