"""Tokenizers are there before anybody is served, or the router does not start."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from router.app.serve import running
from router.config import sessions
from router.config.loading import load_config
from router.config.schema import ConfigError
from router.core.fleet.fleet import Fleet
from router.core.index.prefix_index import PrefixIndex
from router.core.worker import parse_address
from router.runtime.metrics import MAX_LABEL_VALUES
from router.sessions.tokens import build, vocabularies
from router.sessions.tokens.build import open_counts
from router.sessions.tokens.counts import TokenCounts
from router.sessions.tokens.local import LocalCounter
from router.sessions.tokens.metrics import CAUSES, COUNTERS, MEANS, TokenMetrics
from router.upstream.exchange import Upstream
from router.upstream.pool import Pool
from tests.sessions.tokens.desk import Notes
from tests.sessions.tokens.test_local import TEXT
from tests.sessions.tokens.test_local import tokenizer_json as tokenizer_json
from tests.sessions.tokens.test_worker import RULES
from tests.upstream.test_exchange import FLEET, LIMITS


async def opened(notes: Notes, flags: dict[str, Any]) -> TokenCounts:
    """With the models ``a``, ``b`` and ``c``, all of whose workers have gone."""
    fleet = Fleet(RULES, PrefixIndex(100_000, 1000))
    fleet.set_members([parse_address("http://127.0.0.1:1")])
    fleet.set_models(next(fleet.members()), {name: {"id": name} for name in "abc"})
    fleet.set_members(())
    upstream = Upstream(Pool(FLEET, LIMITS), lambda _: lambda _gap: None)
    return await open_counts(load_config(None, {}, flags), fleet, upstream, notes, lambda: 0.0)


async def test_each_model_is_counted_as_its_table_says(tokenizer_json: Path) -> None:
    notes = Notes()
    counts = await opened(
        notes,
        {"tokens.tokenizer": "worker", "models.a.tokenizer": str(tokenizer_json), "models.b*.tokenizer": "estimate"},
    )
    message = {"role": "user", "content": TEXT}
    (exact,) = await counts.count("a", [message])
    assert notes.tokens == {"tokenizer_json": exact}
    assert await counts.count("b", [message]) == [round(len(TEXT) / 4)]
    assert not notes.fallbacks
    await counts.count("c", [message])
    assert notes.fallbacks == {"no_worker": 1}
    await counts.aclose()


async def test_long_texts_are_counted_as_short_ones_are(tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LocalCounter", partial(LocalCounter, max_loop_bytes=100))
    notes = Notes()
    counts = await opened(notes, {"models.a.tokenizer": str(tokenizer_json)})
    (one,), (many,) = [await counts.count("a", [{"content": TEXT * times}]) for times in (1, 100)]
    assert many == 100 * one
    await counts.aclose()


def test_the_encodings_that_may_be_named_are_those_that_can_be_loaded() -> None:
    assert tuple(vocabularies.ENCODINGS) == sessions.ENCODINGS


async def test_a_router_whose_vocabulary_is_missing_does_not_start(tmp_path: Path) -> None:
    flags = {
        "models.gpt-oss-20b.tokenizer": "tiktoken:o200k_harmony",
        "tokens.vocabulary_dir": str(tmp_path),
        "sessions.store": "none",
        "server.port": 0,
        "admin.port": 0,
    }
    with pytest.raises(ConfigError) as raised:
        async with running(load_config(None, {}, flags)):
            pass
    assert str(raised.value).startswith(
        "models.gpt-oss-20b.tokenizer='tiktoken:o200k_harmony': needs the file fb374d41"
    )
    assert "\n" not in str(raised.value)


def test_what_is_observed_is_in_the_metrics() -> None:
    registry = CollectorRegistry()
    metrics = TokenMetrics(registry, lambda model: model == "m")
    for means in MEANS:
        metrics.counted(means, 5)
    for counter in COUNTERS:
        metrics.took(counter, 0.002)
    for cause in CAUSES:
        metrics.fell_back(cause)
    metrics.erred("m", 0.04)
    metrics.erred("made up", 0.04)
    text = generate_latest(registry).decode()
    assert 'warmroute_counted_tokens_total{counter="cache"} 5.0' in text
    assert 'warmroute_token_count_seconds_bucket{counter="tiktoken",le="0.0025"} 1.0' in text
    assert 'warmroute_token_count_fallbacks_total{cause="timeout"} 1.0' in text
    assert 'warmroute_prompt_tokens_error_ratio_bucket{le="0.05",model="m"} 1.0' in text
    assert 'warmroute_prompt_tokens_error_ratio_count{model="other"} 1.0' in text
    assert "made up" not in text


def test_models_beyond_a_bound_share_a_label() -> None:
    registry = CollectorRegistry()
    metrics = TokenMetrics(registry, lambda _: True)
    for number in range(MAX_LABEL_VALUES + 50):
        metrics.erred(f"m{number}", 0.0)
    text = generate_latest(registry).decode()
    assert text.count("error_ratio_count{") == MAX_LABEL_VALUES + 1
    assert 'warmroute_prompt_tokens_error_ratio_count{model="other"} 50.0' in text
