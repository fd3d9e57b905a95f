"""What the stateful half shows of itself, as Prometheus reads it: each metric moves with what it says."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router.app import Running
from tests.e2e.faults import metric
from tests.e2e.routed import Answer, get, post, routed, until
from tests.redis_servers import RedisProcess, running
from tests.upstream.scripted import Asked, Peer, ScriptedWorker, answer, scripted

ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def saying(cached_tokens: int | None = None) -> Any:
    """A worker's script. ``cached_tokens``: of a prompt of 100, what was cached; None: it does not say."""
    details = {} if cached_tokens is None else {"prompt_tokens_details": {"cached_tokens": cached_tokens}}
    usage = {"prompt_tokens": 100, "completion_tokens": 3, "total_tokens": 103, **details}
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    whole = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}

    async def say(asked: Asked, peer: Peer) -> None:
        await peer.send(answer(json.dumps(whole).encode()))

    return say


@asynccontextmanager
async def serving(script: Any = None, **settings: Any) -> AsyncIterator[tuple[ScriptedWorker, Running]]:
    async with scripted(script or saying()) as worker, routed(worker.url, **settings) as router:
        yield worker, router


async def say(router: Running, name: str = "s", *lines: str) -> Answer:
    return await post(router, f"/v1/sessions/{name}/chat/completions", ASK, *lines)


async def respond(router: Running, **members: Any) -> Answer:
    return await post(router, "/v1/responses", {"model": "m", "input": "hello", **members})


async def becomes(router: Running, name: str, is_so: Callable[[float], bool], **labels: str) -> None:
    """Wait until the metric is so."""
    async with asyncio.timeout(10):
        while not is_so(await metric(router, f"warmroute_{name}", **labels)):
            await asyncio.sleep(0.01)


async def by_label(router: Running, name: str, label: str, *values: str) -> Mapping[str, float]:
    return {value: await metric(router, f"warmroute_{name}", **{label: value}) for value in values}


async def test_turns_are_counted_by_the_door_that_they_came_through() -> None:
    async with serving() as (_, router):
        conversation = (await post(router, "/v1/conversations", {})).json["id"]
        assert (await say(router)).status == 200
        for _ in range(2):
            assert (await respond(router)).status == 200
        for _ in range(3):
            assert (await respond(router, conversation=conversation)).status == 200
        assert (await respond(router, conversation="conv_nobodys")).status == 404
        doors = ("sessions", "responses", "conversations")
        assert await metric(router, "warmroute_turns_total", outcome="ok") == 6
        for door, turns in zip(doors, (1, 2, 3), strict=True):
            assert await metric(router, "warmroute_turns_total", door=door, outcome="ok") == turns
        assert await metric(router, "warmroute_turns_total", door="conversations", outcome="refused") == 1
        assert await by_label(router, "turns_total", "door", *doors) == {
            "sessions": 1,
            "responses": 2,
            "conversations": 4,
        }


async def test_a_sessions_items_and_bytes_are_observed_when_a_turn_ends() -> None:
    async with serving() as (_, router):
        for turns in (1, 2):
            await say(router)
            shown = (await get(router, "/v1/sessions/s")).json
            assert shown["items"] == 2 * turns
            assert await metric(router, "warmroute_session_items_count") == turns
        assert await metric(router, "warmroute_session_items_sum") == 2 + 4
        assert await metric(router, "warmroute_session_bytes_count") == 2
        assert await metric(router, "warmroute_session_bytes_sum") == shown["bytes"] * 1.5
        await post(router, "/v1/sessions/s/items", {"items": [{"role": "user", "content": "more"}]})
        assert await metric(router, "warmroute_session_items_sum") == 2 + 4 + 5


@pytest.fixture
def redis_server() -> Iterator[RedisProcess]:
    with running() as server:
        yield server


def stored_in(server: RedisProcess, state_dir: Path) -> Mapping[str, str]:
    """Settings of a router."""
    return {
        "sessions__store": f"{server.url}/0",
        "sessions__state_dir": str(state_dir),
        "sessions__secret": "a secret of the tests",
    }


async def test_ends_of_turns_that_redis_does_not_take_show_in_the_journal_until_it_does(
    redis_server: RedisProcess, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def wait(asked: Asked, peer: Peer) -> None:
        await go_on.wait()
        await saying()(asked, peer)

    async with serving(wait, **stored_in(redis_server, tmp_path)) as (worker, router):
        turn = asyncio.create_task(say(router))
        await until(lambda: worker.asked)
        redis_server.send(signal.SIGSTOP)
        go_on.set()
        try:
            assert (await turn).status == 200
            assert await metric(router, "warmroute_write_behind_items") == 1
            room = await metric(router, "warmroute_max_journal_bytes")
            assert 0 < await metric(router, "warmroute_journal_bytes") < room
            await becomes(router, "write_behind_seconds", lambda seconds: 0.2 < seconds < 20)
        finally:
            redis_server.send(signal.SIGCONT)
        await becomes(router, "journal_bytes", lambda size: size == 0)
        for name in ("write_behind_items", "write_behind_seconds"):
            assert await metric(router, f"warmroute_{name}") == 0, name


async def test_claims_that_a_hung_store_has_yet_to_take_back_are_counted_and_bounded(
    redis_server: RedisProcess, tmp_path: Path
) -> None:
    async with serving(**stored_in(redis_server, tmp_path), sessions__max_give_backs=1) as (_, router):
        assert (await say(router)).status == 200
        assert await metric(router, "warmroute_max_give_backs") == 1
        redis_server.send(signal.SIGSTOP)
        try:
            assert (await say(router, "a")).status == 503
            await becomes(router, "give_backs", lambda waiting: waiting == 1)
            assert await metric(router, "warmroute_given_up_claims_total") == 0
            assert (await say(router, "b")).status == 503
            await becomes(router, "given_up_claims_total", lambda given_up: given_up == 1)
        finally:
            redis_server.send(signal.SIGCONT)
        await becomes(router, "give_backs", lambda waiting: waiting == 0)
        assert await metric(router, "warmroute_given_up_claims_total") == 1
