"""A worker is lost while it works: whole answers that it owed come from the other one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from tests.vllm.conversation import prose
from tests.vllm.lab import MODEL, VllmWorker
from tests.vllm.routed import routed

pytestmark = pytest.mark.vllm

REQUESTS = 40
CONNECTIONS = 8


async def test_no_request_fails_when_a_worker_is_killed_under_them(
    workers: Sequence[VllmWorker], tmp_path: Path
) -> None:
    draw = random.Random()
    answered: list[tuple[int, str, str]] = []
    with routed(workers, tmp_path / "router.log") as url:
        async with aiohttp.ClientSession(url) as session:
            left = iter(range(REQUESTS))

            async def client() -> None:
                for _ in left:
                    answered.append(await _complete(session, draw))
                    if len(answered) == REQUESTS // 4:
                        workers[1].kill()

            await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    assert not workers[1].is_running
    assert [answer for answer in answered if answer[:2] != (200, "length")] == []
    assert len(answered) == REQUESTS
    assert len({worker for _, _, worker in answered[: REQUESTS // 4]}) == 2, "both workers had requests"


async def _complete(session: aiohttp.ClientSession, draw: random.Random) -> tuple[int, str, str]:
    """Status, finish_reason (or the error's body), and the worker that answered."""
    messages = [{"role": "user", "content": prose(draw, 200)}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 48, "ignore_eos": True}
    async with session.post("/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            return answer.status, await answer.text(), ""
        choice = (await answer.json())["choices"][0]
        return answer.status, choice["finish_reason"], answer.headers["x-warmroute-worker"]
