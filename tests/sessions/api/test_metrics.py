"""What the stateful half shows of itself, as Prometheus reads it: each metric moves with what it says."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from router.app.serve import Running
from router.sessions import store_health
from tests.e2e.faults import metric
from tests.e2e.routed import Answer, get, post, routed, until
from tests.sessions.stores.redis_servers import RedisProcess, running
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


async def say(router: Running, name: str = "s", *lines: str, **members: Any) -> Answer:
    return await post(router, f"/v1/sessions/{name}/chat/completions", {**ASK, **members}, *lines)


async def respond(router: Running, **members: Any) -> Answer:
    return await post(router, "/v1/responses", {"model": "m", "input": "hello", **members})


async def becomes(router: Running, name: str, is_so: Callable[[float], bool], **labels: str) -> None:
    """Wait until the metric is so."""
    async with asyncio.timeout(10):
        while not is_so(await metric(router, f"warmroute_{name}", **labels)):
            await asyncio.sleep(0.01)


async def by_label(router: Running, name: str, label: str, *values: str) -> Mapping[str, float]:
    return {value: await metric(router, f"warmroute_{name}", **{label: value}) for value in values}


async def test_turns_are_counted_by_the_api_that_they_came_through() -> None:
    async with serving() as (_, router):
        conversation = (await post(router, "/v1/conversations", {})).json["id"]
        assert (await say(router)).status == 200
        for _ in range(2):
            assert (await respond(router)).status == 200
        for _ in range(3):
            assert (await respond(router, conversation=conversation)).status == 200
        assert (await respond(router, conversation="conv_nobodys")).status == 404
        apis = ("sessions", "responses", "conversations")
        assert await metric(router, "warmroute_turns_total", outcome="ok") == 6
        for api, turns in zip(apis, (1, 2, 3), strict=True):
            assert await metric(router, "warmroute_turns_total", api=api, outcome="ok") == turns
        assert await metric(router, "warmroute_turns_total", api="conversations", outcome="refused") == 1
        assert await by_label(router, "turns_total", "api", *apis) == {
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
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_health, "CHECK_S", 0.02)


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


@pytest.mark.usefixtures("quick_looks")
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
        assert await metric(router, "warmroute_store_up") == 1
        redis_server.send(signal.SIGSTOP)
        go_on.set()
        try:
            assert (await turn).status == 200
            assert await metric(router, "warmroute_write_behind_items") == 1
            room = await metric(router, "warmroute_max_journal_bytes")
            assert 0 < await metric(router, "warmroute_journal_bytes") < room
            await becomes(router, "write_behind_seconds", lambda seconds: 0.2 < seconds < 20)
            await becomes(router, "store_up", lambda up: up == 0)
            await becomes(router, "store_breaker_state", lambda state: state > 0)
            assert await metric(router, "warmroute_store_failures_total") == 0, "the journal took it"
            assert (await say(router, "other")).status == 503
            assert await metric(router, "warmroute_store_failures_total") > 0
        finally:
            redis_server.send(signal.SIGCONT)
        await becomes(router, "journal_bytes", lambda size: size == 0)
        await becomes(router, "store_up", lambda up: up == 1)
        for name in ("write_behind_items", "write_behind_seconds", "store_breaker_state"):
            assert await metric(router, f"warmroute_{name}") == 0, name


async def test_claims_that_a_hung_store_has_yet_to_take_back_are_counted_and_bounded(
    redis_server: RedisProcess, tmp_path: Path
) -> None:
    async with serving(**stored_in(redis_server, tmp_path), sessions__max_waiting_releases=1) as (_, router):
        assert (await say(router)).status == 200
        assert await metric(router, "warmroute_max_waiting_releases") == 1
        redis_server.send(signal.SIGSTOP)
        try:
            assert (await say(router, "a")).status == 503
            await becomes(router, "waiting_releases", lambda waiting: waiting == 1)
            assert await metric(router, "warmroute_abandoned_claims_total") == 0
            assert (await say(router, "b")).status == 503
            await becomes(router, "abandoned_claims_total", lambda given_up: given_up == 1)
        finally:
            redis_server.send(signal.SIGCONT)
        await becomes(router, "waiting_releases", lambda waiting: waiting == 0)
        assert await metric(router, "warmroute_abandoned_claims_total") == 1


@pytest.mark.usefixtures("quick_looks")
async def test_a_file_that_another_process_keeps_locked_is_a_store_that_is_not_up(tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    async with serving(sessions__store=f"sqlite://{file}") as (_, router):
        assert await metric(router, "warmroute_store_up") == 1
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await becomes(router, "store_up", lambda up: up == 0)
            turn = asyncio.create_task(say(router))
            await becomes(router, "store_calls", lambda calls: calls > 0)
            assert (await turn).status == 503
            assert await metric(router, "warmroute_store_failures_total") == 1
        await becomes(router, "store_up", lambda up: up == 1)
        await becomes(router, "store_calls", lambda calls: calls == 0)
        assert await metric(router, "warmroute_max_store_calls") == 2 * 256


async def test_what_a_history_took_is_told_by_where_it_came_from(tmp_path: Path) -> None:
    store = f"sqlite://{tmp_path}/sessions.db"
    async with serving(sessions__store=store) as (_, router):
        await say(router)
        assert await metric(router, "warmroute_turn_overhead_seconds_count", store="sqlite") == 1
        await say(router)
    async with serving(sessions__store=store) as (_, router):
        for tier in ("store", "memory"):
            await say(router)
            for stage in ("fetch", "parse"):
                labels = {"tier": tier, "stage": stage}
                assert await metric(router, "warmroute_state_load_seconds_count", **labels) == 1, labels
        assert await metric(router, "warmroute_turn_overhead_seconds_count") == 2
        await get(router, "/v1/sessions/s")
        assert await metric(router, "warmroute_state_load_seconds_count", tier="memory") == 4, "read once more"


@pytest.mark.parametrize(("cached", "state"), [(90, "warm"), (5, "cold"), (None, "unknown")])
async def test_turns_are_told_by_whether_their_prefix_was_warm(cached: int | None, state: str) -> None:
    async with serving(saying(cached)) as (_, router):
        await say(router)
        assert await metric(router, "warmroute_turn_prefixes_total") == 0, "nothing stood before it"
        await say(router)
        assert await metric(router, "warmroute_turn_prefixes_total", state=state) == 1
        first = (await respond(router)).json["id"]
        assert (await respond(router, previous_response_id=first, store=False)).status == 200
        assert await metric(router, "warmroute_turn_prefixes_total", state=state) == 2
        assert await metric(router, "warmroute_turn_prefixes_total") == 2


@pytest.mark.parametrize("policy", ["queue", "reject", "fork"])
async def test_conflicts_are_counted_by_what_was_to_be_done_about_them(policy: str) -> None:
    go_on = asyncio.Event()

    async def wait(asked: Asked, peer: Peer) -> None:
        await go_on.wait()
        await saying()(asked, peer)

    async with serving(wait) as (worker, router):
        first = asyncio.create_task(say(router))
        await until(lambda: worker.asked)
        assert await metric(router, "warmroute_live_turns") == 1
        second = asyncio.create_task(say(router, "s", f"x-warmroute-on-busy: {policy}"))
        await becomes(router, "turn_conflicts_total", lambda met: met == 1, policy=policy)
        go_on.set()
        assert (await first).status == 200
        assert (await second).status == (409 if policy == "reject" else 200)
        assert await metric(router, "warmroute_turn_conflicts_total") == 1
        assert await metric(router, "warmroute_live_turns") == 0


async def test_a_turn_whose_session_was_deleted_under_it_is_a_fence_rejection() -> None:
    async def delete_first(asked: Asked, peer: Peer) -> None:
        assert (await get(router, "/v1/sessions/s", method="DELETE")).status == 200
        await saying()(asked, peer)

    async with serving(delete_first) as (_, router):
        assert (await say(router)).status == 409
        assert await metric(router, "warmroute_fence_rejections_total") == 1
        assert await metric(router, "warmroute_turns_total", outcome="refused") == 1


async def test_what_clients_spare_and_what_they_break_is_counted() -> None:
    async with serving() as (_, router):
        await say(router, messages=[{"role": "user", "content": "x" * 5000}])
        before = await metric(router, "warmroute_spared_bytes_total")
        whole = [{"role": "user", "content": "x" * 5000}, {"role": "assistant", "content": "hi"}, *ASK["messages"]]
        await say(router, messages=[{"role": "system", "content": "be brief"}, *whole])
        assert await metric(router, "warmroute_resent_messages_total") == 2
        assert await metric(router, "warmroute_prefix_breaks_total") == 0
        assert await metric(router, "warmroute_spared_bytes_total") - before < 1000
        await say(router, messages=[{"role": "system", "content": "be long"}, *ASK["messages"]])
        assert await metric(router, "warmroute_prefix_breaks_total", cause="system_changed") == 1
        assert 5000 < await metric(router, "warmroute_spared_bytes_total") - before < 6000
