"""Workers count texts; one that dies, hangs or talks nonsense costs exactness and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import msgspec
import pytest

from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules
from router.core.fleet.rules import FleetRules
from router.core.index.prefix_index import PrefixIndex
from router.core.worker import parse_address
from router.sessions.tokens.counter import CannotCount
from router.sessions.tokens.worker import WorkerCounter, WorkerLimits
from router.simulator.tokenizer import count_tokens
from router.upstream.exchange import Upstream
from router.upstream.pool import Pool
from tests.sessions.tokens.desk import Notes, make_counts
from tests.simulator.serving import serving
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, Script, answer, scripted, unused_url
from tests.upstream.test_exchange import SETTINGS

RULES = FleetRules(HealthRules(failures=2, ejection_s=1.0), 10_000.0, 4.0, 5.0, 500_000)


@asynccontextmanager
async def counting(urls: Sequence[str], timeout_s: float = 10.0, max_calls: int = 4) -> AsyncIterator[WorkerCounter]:
    """By workers that are up and serve ``m``."""
    fleet = Fleet(RULES, PrefixIndex(100_000, 1000))
    fleet.set_members(map(parse_address, urls))
    for member in fleet.members():
        fleet.set_models(member, {"m": {"id": "m"}})
        if member.health.on_probe_answered(0.0):
            fleet.on_health_changed(member)
    pool = Pool(SETTINGS)
    try:
        yield WorkerCounter(fleet, Upstream(pool, lambda _: lambda _gap: None), WorkerLimits(timeout_s, max_calls))
    finally:
        pool.close()


async def count_words(asked: Asked, peer: Peer) -> None:
    count = len(json.loads(asked.body)["prompt"].split())
    await peer.send(answer(b'{"count":%d,"max_model_len":100,"tokens":[%b1]}' % (count, b"1," * count)))


async def test_a_simulated_worker_is_asked_for_texts_without_a_template() -> None:
    texts = ["Hello there, how are you? 123", "é中😀", "a\nb"]
    async with serving(models=("m",)) as client, counting(client.fleet.urls) as counter:
        assert await counter.count("m", texts) == [count_tokens(text.encode()) for text in texts]


async def test_totals_come_to_what_the_worker_charges_for_the_prompt() -> None:
    notes, chance = Notes(), Random(1)
    words = [
        "the",
        "tokens",
        "of",
        "12",
        "prompts,",
        "counted:",
        "one",
        "by",
        "one;",
        "what",
        "a",
        "café's",
        "menu",
        "says",
    ]
    async with serving(models=("m",)) as client, counting(client.fleet.urls) as counter:
        counts = make_counts(lambda _: counter, notes)
        for _ in range(8):
            messages: list[dict[str, str]] = []
            for role in ("system", *("user", "assistant") * 4):
                messages.append({"role": role, "content": " ".join(chance.choices(words, k=chance.randrange(1, 80)))})
                told = sum(await counts.count("m", messages))
                _, reply = await client.post("/tokenize", model="m", messages=messages)
                counts.learn("m", told, len(messages), reply["count"])
    errors = [ratio for _, ratio in notes.errors]
    assert max(errors[-20:]) < 0.02
    assert not notes.fallbacks


async def test_each_text_is_a_request_that_asks_for_no_special_tokens() -> None:
    async with scripted(count_words) as worker, counting([worker.url]) as counter:
        assert await counter.count("m", ["a b", "c"]) == [2, 1]
    assert {asked.path for asked in worker.asked} == {"/tokenize"}
    bodies = sorted((json.loads(asked.body) for asked in worker.asked), key=lambda body: str(body["prompt"]))
    assert bodies[0] == {"model": "m", "prompt": "a b", "add_special_tokens": False}


async def test_no_more_texts_are_under_way_than_may_be() -> None:
    at_once = most = 0

    async def script(asked: Asked, peer: Peer) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        at_once -= 1
        await count_words(asked, peer)

    async with scripted(script) as worker, counting([worker.url], max_calls=3) as counter:
        assert await counter.count("m", ["a b"] * 20) == [2] * 20
    assert 1 < most <= 3


async def nothing(_asked: Asked, peer: Peer) -> None:
    await peer.gone()


async def dies(_asked: Asked, peer: Peer) -> None:
    peer.drop()


async def dies_in_its_answer(_asked: Asked, peer: Peer) -> None:
    await peer.send(answer(b'{"count":1,"tokens":[1]}')[:-5])
    peer.drop()


def says(body: bytes, status: int = 200) -> Script:
    async def script(_asked: Asked, peer: Peer) -> None:
        await peer.send(answer(body, status))

    return script


async def streams(_asked: Asked, peer: Peer) -> None:
    await peer.send(STREAM_HEAD, b"5\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "script",
    [
        dies,
        dies_in_its_answer,
        streams,
        says(b'{"count":1}', 500),
        says(b'{"error":{"message":"no such model"}}', 404),
        says(b""),
        says(b"[]"),
        says(b"\xff\xfe"),
        says(b'{"count":"3"}'),
        says(b'{"count":-1}'),
        says(b'{"count":1e300}'),
        says(b'{"count":1000000}'),
    ],
)
async def test_a_worker_that_cannot_count_is_the_cause(script: Script) -> None:
    async with scripted(script) as worker, counting([worker.url]) as counter:
        with pytest.raises(CannotCount) as raised:
            await counter.count("m", ["a secret"])
    assert raised.value.cause == "worker"
    assert "secret" not in str(raised.value)


async def test_a_worker_that_says_nothing_is_waited_for_until_the_deadline_and_its_connection_ends() -> None:
    async with scripted(nothing) as worker, counting([worker.url], timeout_s=0.05) as counter:
        with pytest.raises(CannotCount) as raised:
            await counter.count("m", ["a", "b"])
        assert raised.value.cause == "timeout"
        async with asyncio.timeout(10):
            assert {await worker.ended.get(), await worker.ended.get()} == {0, 1}


async def test_a_worker_that_was_killed_is_the_cause() -> None:
    async with counting([await unused_url()]) as counter:
        with pytest.raises(CannotCount) as raised:
            await counter.count("m", ["a"])
    assert raised.value.cause == "worker"


async def test_without_a_worker_that_is_up_nobody_is_asked() -> None:
    async with counting([]) as counter:
        with pytest.raises(CannotCount) as raised:
            await counter.count("m", ["a"])
    assert raised.value.cause == "no_worker"


async def test_after_a_failure_workers_count_again() -> None:
    scripts = [dies, count_words]

    async def script(asked: Asked, peer: Peer) -> None:
        await scripts.pop(0)(asked, peer)

    notes = Notes()
    message = {"role": "user", "content": "one two three"}
    async with scripted(script) as worker, counting([worker.url]) as counter:
        counts = make_counts(lambda _: counter, notes)
        assert await counts.count("m", [message]) == [3]  # 13 bytes, estimated
        assert await counts.count("m", [message]) == [3]
        assert await counts.count("m", [message]) == [3]
    assert notes.fallbacks == {"worker": 1}
    assert notes.tokens == {"estimate": 3, "worker": 3, "cache": 3}
    assert msgspec.json.decode(worker.asked[0].body)["model"] == "m"
