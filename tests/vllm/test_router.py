"""Conversations through the router to two real workers: they stay where they are warm, and that pays."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from tests.vllm.conversation import Conversation, Turn, read_counters
from tests.vllm.lab import VllmWorker
from tests.vllm.results import write_result
from tests.vllm.routed import routed

pytestmark = pytest.mark.vllm

TEST = "tests/vllm/test_router.py"
POLICIES = ("round_robin", "cache_aware")
# An odd number: with an even one, taking turns would send every conversation to the same worker each time.
CONVERSATIONS = 9
TURNS = 5
WORDS_PER_TURN = 500
PASSES = 3
LONG_CONVERSATIONS = 5


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, object]]:
    """What the tests of this module find out; written when they are through, if all of them found something."""
    found: dict[str, object] = {}
    yield found
    if found.keys() >= {"turns_through_the_router", "medians"}:
        write_result("vllm-policies", TEST, found)


async def test_conversation_stays_on_one_worker_and_is_warm_by_its_counters(
    workers: Sequence[VllmWorker], tmp_path: Path
) -> None:
    before = await read_counters(workers)
    conversation = Conversation(random.Random(), words_per_turn=600)
    with routed(workers, tmp_path / "router.log") as url:
        async with aiohttp.ClientSession(url) as session:
            for _ in range(6):
                await conversation.take_turn(session)
    spent = [late - early for early, late in zip(before, await read_counters(workers), strict=True)]
    turns = conversation.turns
    assert len({turn.worker for turn in turns}) == 1
    served = [counters for counters in spent if counters.queries]
    assert len(served) == 1
    earlier_tokens = sum(turn.prompt_tokens for turn in turns[:-1])
    assert served[0].queries == sum(turn.prompt_tokens for turn in turns)
    assert served[0].hits == sum(turn.cached_tokens for turn in turns)
    assert served[0].hits > 0.9 * earlier_tokens


async def test_warm_turn_has_its_first_token_much_sooner_than_a_cold_one_of_its_length(
    workers: Sequence[VllmWorker], tmp_path: Path, figures: dict[str, object]
) -> None:
    warm, cold = [], []
    with routed(workers, tmp_path / "router.log") as url:
        async with aiohttp.ClientSession(url) as session:
            for _ in range(LONG_CONVERSATIONS):
                conversation = Conversation(random.Random(), words_per_turn=4000)
                cold.append(await conversation.take_turn(session))
                conversation.words_per_turn = 20
                warm.append(await conversation.take_turn(session))
    told = {name: _describe(turns) for name, turns in (("cold", cold), ("warm", warm))}
    figures["turns_through_the_router"] = told
    assert told["warm"]["median_ttft_s"] < told["cold"]["median_ttft_s"] / 3


def _describe(turns: Sequence[Turn]) -> dict[str, float]:
    ttft_s = [turn.ttft_s for turn in turns]
    return {
        "turns": len(turns),
        "median_prompt_tokens": statistics.median(turn.prompt_tokens for turn in turns),
        "median_cached_tokens": statistics.median(turn.cached_tokens for turn in turns),
        "median_ttft_s": statistics.median(ttft_s),
        "min_ttft_s": min(ttft_s),
        "max_ttft_s": max(ttft_s),
    }


async def test_cache_aware_hits_more_and_answers_sooner_than_round_robin(
    workers: Sequence[VllmWorker], tmp_path: Path, figures: dict[str, object]
) -> None:
    found: dict[str, list[dict[str, float]]] = {policy: [] for policy in POLICIES}
    for _ in range(PASSES):
        for policy in POLICIES:
            found[policy].append(await _run(policy, workers, tmp_path / f"{policy}.log"))
    medians = {
        policy: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for policy, runs in found.items()
    }
    figures |= {"conversations": CONVERSATIONS, "turns": TURNS, "medians": medians, "passes": found}
    cache_aware, round_robin = medians["cache_aware"], medians["round_robin"]
    assert cache_aware["hit_ratio"] > round_robin["hit_ratio"] + 0.1
    assert cache_aware["mean_ttft_s"] < round_robin["mean_ttft_s"]


async def _run(policy: str, workers: Sequence[VllmWorker], log: Path) -> dict[str, float]:
    """All conversations at once through a fresh router; their texts are new, so that nothing of them is warm yet."""
    draw = random.Random()
    conversations = [Conversation(draw, WORDS_PER_TURN) for _ in range(CONVERSATIONS)]
    before = await read_counters(workers)
    with routed(workers, log, "--policy", policy) as url:
        async with aiohttp.ClientSession(url) as session:
            turns = await asyncio.gather(*(_converse(conversation, session) for conversation in conversations))
    spent = [late - early for early, late in zip(before, await read_counters(workers), strict=True)]
    ttft_s = sorted(turn.ttft_s for of_one in turns for turn in of_one)
    return {
        "hit_ratio": sum(counters.hits for counters in spent) / sum(counters.queries for counters in spent),
        "mean_ttft_s": statistics.mean(ttft_s),
        "p50_ttft_s": statistics.median(ttft_s),
        "p90_ttft_s": ttft_s[int(0.9 * len(ttft_s))],
        "share_of_first_worker": spent[0].queries / sum(counters.queries for counters in spent),
    }


async def _converse(conversation: Conversation, session: aiohttp.ClientSession) -> Sequence[Turn]:
    for _ in range(TURNS):
        await conversation.take_turn(session)
    return conversation.turns
