"""Which models are counted how: the configuration's tokenizers, loaded before anybody is served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from router.config.schema import ESTIMATE, MODELS, WORKER, Config, ConfigError
from router.core.fleet.fleet import Fleet
from router.proxy.ports import Upstream
from router.sessions.tokens.cache import CountCache
from router.sessions.tokens.counter import Counter
from router.sessions.tokens.counts import CountLimits, Observer, TokenCounts
from router.sessions.tokens.local import LocalCounter
from router.sessions.tokens.vocabularies import Unusable, load_tiktoken, load_tokenizer_json
from router.sessions.tokens.worker import WorkerCounter, WorkerLimits


async def open_counts(
    config: Config, fleet: Fleet, upstream: Upstream, observer: Observer, clock: Callable[[], float]
) -> TokenCounts:
    """Raises ConfigError for a tokenizer that cannot be had."""
    tokens = config.tokens
    threads = ThreadPoolExecutor(tokens.max_threads, thread_name_prefix="tokens")
    counters: dict[str, Counter] = {}
    for key, tokenizer in _tokenizers(config):
        if tokenizer in counters:
            continue
        if tokenizer == WORKER:
            counters[tokenizer] = WorkerCounter(
                fleet, upstream, WorkerLimits(tokens.worker_timeout_s, tokens.max_worker_calls)
            )
        else:
            try:
                counters[tokenizer] = await asyncio.to_thread(_load, tokenizer, config, threads)
            except Unusable as error:
                raise ConfigError(f"{key}={tokenizer!r}: {error}") from None
    return TokenCounts(
        CountLimits(tokens.max_exact_bytes, tokens.media_tokens),
        lambda model: counters.get(config.tokenizer_of(model)),
        fleet.learning,
        CountCache(tokens.max_known_counts),
        observer,
        clock,
        threads,
    )


def _tokenizers(config: Config) -> Iterator[tuple[str, str]]:
    """Each that has to be made, with its key."""
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
        return LocalCounter(
            "tiktoken", load_tiktoken(encoding, directory), threads, max_loop_bytes=tokens.max_loop_bytes
        )
    count_text = load_tokenizer_json(Path(tokenizer))
    return LocalCounter("tokenizer_json", count_text, threads, max_loop_bytes=tokens.max_loop_bytes)
