"""Streams of real workers that are cut or killed go on elsewhere, with the text that they would have had.

A penalty on repetition makes the greedy text of random weights vary, and the byte tokens that are favoured make it full of
characters of several bytes, whole and broken. The system prompt holds a secret: a worker that is asked to begin inside a
character would send it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.vllm.cutter import cutting
from tests.vllm.lab import MODEL, VllmWorker
from tests.vllm.routed import Reachable, routed

pytestmark = pytest.mark.vllm

SECRET = "The password is swordfish."
LETTERS = "éèàüößñçåøñ漢字かなжук🙂🚀"
TOKENS = 28
KILLS = 5
STREAMS = 4
LONG = 120
_IN_TURN = ("--policy", "round_robin")


@dataclass(slots=True)
class Heard:
    text: str = ""
    reasons: list[tuple[str, Any]] = field(default_factory=list)
    names: set[tuple[str, int]] = field(default_factory=set)
    roles: int = 0
    usage: list[tuple[int, int]] = field(default_factory=list)
    raw: str = ""

    def assert_is(self, expected: Heard) -> None:
        assert SECRET not in self.raw
        assert "token_ids" not in self.raw
        assert (self.text, self.reasons, self.usage) == (expected.text, expected.reasons, expected.usage)
        assert (len(self.names), self.roles) == (1, 1)


def asking(number: int = 0, **more: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": SECRET},
        {"role": "user", "content": f"Tell me of {number} things. " * 5},
    ]
    return {
        "model": MODEL,
        "messages": messages,
        "temperature": 0,
        "repetition_penalty": 1.3,
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


async def favouring_bytes(session: aiohttp.ClientSession, worker: VllmWorker) -> dict[str, Any]:
    """The tokens of many letters that are not ASCII, most of which are single bytes."""
    async with session.post(f"{worker.url}/tokenize", json={"model": MODEL, "prompt": LETTERS}) as answer:
        tokens = (await answer.json())["tokens"]
    return {"logit_bias": {str(token): 3.0 for token in tokens}}


async def hear(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], begun: asyncio.Event | None = None
) -> Heard:
    heard = Heard()
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        events = 0
        async for line in response.content:
            heard.raw += line.decode()
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            heard.names.add((chunk["id"], chunk["created"]))
            for choice in chunk["choices"]:
                heard.roles += "role" in choice["delta"]
                heard.text += choice["delta"].get("content") or ""
                if choice["finish_reason"]:
                    heard.reasons.append((choice["finish_reason"], choice.get("stop_reason")))
            if chunk.get("usage"):
                heard.usage.append((chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"]))
            events += 1
            if begun is not None and events > 20:
                begun.set()
    assert heard.raw.endswith("data: [DONE]\n\n")
    return heard


@asynccontextmanager
async def routed_beside(workers: Sequence[Reachable], log: Path) -> AsyncIterator[str]:
    """A router to whose workers the way leads through this very loop, which must not be held up meanwhile."""
    router = routed(workers, log, *_IN_TURN)
    url = await asyncio.to_thread(router.__enter__)
    try:
        yield url
    finally:
        await asyncio.to_thread(router.__exit__, None, None, None)


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("has_stops", [False, True])
async def test_a_stream_that_is_cut_at_any_event_goes_on_exactly_and_tells_no_secret(
    workers: Sequence[VllmWorker], tmp_path: Path, interval: int, has_stops: bool
) -> None:
    async with (
        cutting(workers[0]) as one,
        cutting(workers[1]) as other,
        aiohttp.ClientSession(read_bufsize=1 << 22) as session,
    ):
        more = await favouring_bytes(session, workers[0])
        more |= {"stream_interval": interval} if interval > 1 else {}
        whole = await hear(session, workers[0].url, asking(**more))
        assert any(ord(letter) > 0x7F for letter in whole.text)
        if has_stops:
            at = len(whole.text) * 2 // 3
            more["stop"] = [whole.text[at : at + 3], "never, ever said"]
            whole = await hear(session, workers[0].url, asking(**more))
            assert whole.reasons[0][0] == "stop"
        events = whole.raw.count('"delta"')
        async with routed_beside([one, other], tmp_path / "router.log") as url:
            for after in range(1, events + 1):
                cuts = one.cuts + other.cuts
                one.cut_after = after
                other.cut_after = after
                heard = await hear(session, url, asking(**more))
                assert one.cuts + other.cuts > cuts
                one.cut_after = other.cut_after = None
                heard.assert_is(whole)


async def test_streams_outlive_their_killed_workers(workers: Sequence[VllmWorker], tmp_path: Path) -> None:
    async with aiohttp.ClientSession(read_bufsize=1 << 22) as session:
        more = await favouring_bytes(session, workers[0]) | {"max_tokens": LONG, "ignore_eos": True}
        expected = [await hear(session, workers[0].url, asking(number, **more)) for number in range(STREAMS)]
        async with routed_beside(workers, tmp_path / "router.log") as url:
            for kill in range(KILLS):
                begun = [asyncio.Event() for _ in range(STREAMS)]
                asked = [
                    asyncio.create_task(hear(session, url, asking(number, **more), begun[number]))
                    for number in range(STREAMS)
                ]
                await asyncio.gather(*[event.wait() for event in begun])
                victim = workers[kill % 2]
                await asyncio.to_thread(victim.kill)
                for heard, whole in zip(await asyncio.gather(*asked), expected, strict=True):
                    heard.assert_is(whole)
                await asyncio.to_thread(victim.start)
                await asyncio.to_thread(victim.wait_until_up)
        assert (tmp_path / "router.log").read_text().count("worker ejected") >= KILLS
