"""What the stateful half does when Redis or a router dies: real servers, and routers in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, web

from bench.outage import Fault, measure
from bench.races import Seen, check, read_log, take, worker_app
from bench.verdict import ServedRouter, served
from tests.sessions.stores.redis_servers import RedisProcess, running

pytestmark = pytest.mark.system

OUTAGE_S = 4.0
PAUSE_S = 0.02


@pytest.mark.parametrize("fault", ["stop", "kill", "kill-lose"])
async def test_only_stateful_requests_notice_that_redis_is_away_and_nothing_acknowledged_is_lost(fault: Fault) -> None:
    figures, claims = await measure(fault, OUTAGE_S)
    assert all(claims.values()), (figures, claims)


@dataclass
class Bench:
    """A worker that notes what it is sent, and clients. ``settings``: of every router."""

    worker: str
    client: ClientSession
    seen: Seen
    settings: dict[str, str]

    @contextlib.asynccontextmanager
    async def router(self) -> AsyncIterator[ServedRouter]:
        async with served([self.worker], self.settings) as router:
            yield router

    async def turn(self, url: str, session: str, name: str) -> None:
        self.seen.taken.setdefault(session, {})
        await take(self.client, url, session, name, self.seen)
        assert not self.seen.failed

    async def status(self, url: str, session: str, name: str = "") -> tuple[int, str]:
        """Of a turn, or of reading the session; and the code of its error."""
        path = f"{url}/v1/sessions/{session}"
        if name:
            body = {"model": "m", "messages": [{"role": "user", "content": name}]}
            call = self.client.post(f"{path}/chat/completions", json=body)
        else:
            call = self.client.get(f"{path}/items")
        async with call as answer:
            return answer.status, (await answer.json()).get("error", {}).get("code", "")


@pytest.fixture
def redis_server() -> Iterator[RedisProcess]:
    with running() as server:
        yield server


@contextlib.asynccontextmanager
async def bench_at(store: str, state_dir: Path, pause_s: float = 0.0) -> AsyncIterator[Bench]:
    seen = Seen()
    runner = web.AppRunner(worker_app(seen, pause_s), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    settings = {
        "WARMROUTE_SESSIONS__STORE": store,
        "WARMROUTE_SESSIONS__STATE_DIR": str(state_dir),
        "WARMROUTE_SESSIONS__SECRET": "a secret of the tests",
        "WARMROUTE_SESSIONS__LEASE_S": "1",
    }
    async with ClientSession() as client:
        yield Bench(f"http://127.0.0.1:{runner.addresses[0][1]}", client, seen, settings)
    await runner.cleanup()


@pytest.fixture(params=["redis", "sqlite"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    with contextlib.ExitStack() as stack:
        store = f"{stack.enter_context(running()).url}/0" if request.param == "redis" else ""
        async with bench_at(store, tmp_path, PAUSE_S) as bench:
            yield bench


@pytest.fixture
async def on_redis(redis_server: RedisProcess, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_at(f"{redis_server.url}/0", tmp_path) as bench:
        yield bench


async def write_until_killed(bench: Bench, router: ServedRouter, session: str, kill_at: int, life: int) -> None:
    """Turns one behind the other; whoever has so many kills the router."""
    for number in range(1000):
        name = f"{session}-{life}-{number}"
        with contextlib.suppress(ClientError):
            await take(bench.client, router.url, session, name, bench.seen)
        if router.process.returncode is not None:
            return
        if number == kill_at and session == "s0":
            router.process.kill()
            await router.process.wait()
            return


async def test_a_router_that_is_killed_amid_writes_loses_nothing_that_it_acknowledged(bench: Bench) -> None:
    sessions = [f"s{number}" for number in range(8)]
    bench.seen.taken = {session: {} for session in sessions}
    for life, kill_at in enumerate((3, 7, 11)):
        async with bench.router() as router:
            await asyncio.gather(*(write_until_killed(bench, router, session, kill_at, life) for session in sessions))
    acknowledged = sum(map(len, bench.seen.taken.values()))
    assert acknowledged >= 3 + 7 + 11
    async with bench.router() as router:
        cut = 0
        for session in sessions:
            await bench_cut_turns_stay_out(bench, router.url, session)
            cut += len(await incomplete(bench, router.url, session))
    assert cut, "no turn was cut: the test has shown nothing"


async def bench_cut_turns_stay_out(bench: Bench, url: str, session: str) -> None:
    """What the session has is what was acknowledged, and what was not is marked and in no prompt."""
    bench.seen.failed.clear()
    marked = await incomplete(bench, url, session)
    await bench.turn(url, session, f"{session} again")
    assert not set(marked) & set(bench.seen.before[f"{session} again"])
    log = await read_log(bench.client, url, session)
    for role, text in log:
        if role == "user":  # stored whole, though its client was not told any more
            bench.seen.taken[session].setdefault(text, (0.0, float("inf")))
    assert check(session, log, bench.seen) == []


async def incomplete(bench: Bench, url: str, session: str) -> list[str]:
    async with bench.client.get(f"{url}/v1/sessions/{session}/items?limit=100") as answer:
        assert answer.status == 200
        data: list[dict[str, Any]] = (await answer.json())["data"]
    return [item["content"][0]["text"] for item in data if item["status"] == "incomplete"]


def spoil_entry(server: RedisProcess, key: bytes) -> None:
    server.ask("HSET", key, "e:1", "no entry")


def make_newer(server: RedisProcess, key: bytes) -> None:
    entry = server.ask("HGET", key, "e:2")
    assert entry.startswith(b"[1,")
    server.ask("HSET", key, "e:2", b"[2," + entry[3:])


def lose_entry(server: RedisProcess, key: bytes) -> None:
    server.ask("HDEL", key, "e:1")


def spoil_turn(server: RedisProcess, key: bytes) -> None:
    server.ask("HSET", key, "head", "many")


def make_another_type(server: RedisProcess, key: bytes) -> None:
    server.ask("DEL", key)
    server.ask("LPUSH", key, "what nobody wrote")


@pytest.mark.parametrize("spoil", [spoil_entry, make_newer, lose_entry, spoil_turn, make_another_type])
async def test_what_cannot_be_read_stops_its_session_and_no_other(
    on_redis: Bench, redis_server: RedisProcess, spoil: Callable[[RedisProcess, bytes], None]
) -> None:
    async with on_redis.router() as router:
        await on_redis.turn(router.url, "bad", "one")
        (key,) = redis_server.ask("KEYS", "wr1:*:s")
        await on_redis.turn(router.url, "good", "two")
    spoil(redis_server, key)
    async with on_redis.router() as router:
        for _ in range(2):
            assert await on_redis.status(router.url, "bad") == (500, "session_corrupt")
            assert await on_redis.status(router.url, "bad", "three") == (500, "session_corrupt")
        await on_redis.turn(router.url, "good", "four")
        log = await read_log(on_redis.client, router.url, "good")
    assert check("good", log, on_redis.seen) == []
    assert "three" not in on_redis.seen.before, "no worker was asked"


async def test_the_next_turn_on_another_router_has_the_last_answer(on_redis: Bench) -> None:
    async with on_redis.router() as one, on_redis.router() as two:
        for number in range(40):
            await on_redis.turn((one, two)[number % 2].url, "s", f"{number}")
        for router in (one, two):
            log = await read_log(on_redis.client, router.url, "s")
            assert len(log) == 80
            assert check("s", log, on_redis.seen) == []


async def test_a_redis_that_comes_back_with_an_older_state_is_believed(
    on_redis: Bench, redis_server: RedisProcess
) -> None:
    """What was acknowledged since is lost, as is said of Redis; but no prompt has what the log has not."""
    async with on_redis.router() as router:
        await on_redis.turn(router.url, "s", "one")
        assert redis_server.ask("SAVE")
        for name in ("two", "three"):
            await on_redis.turn(router.url, "s", name)
        redis_server.kill()
        await asyncio.to_thread(redis_server.start)
        async with asyncio.timeout(10):
            while (await on_redis.status(router.url, "s"))[0] == 503:
                await asyncio.sleep(0.05)
        for name in ("four", "five"):
            await on_redis.turn(router.url, "s", name)
        log = await read_log(on_redis.client, router.url, "s")
    assert [text for _, text in log] == ["one", "re one", "four", "re four", "five", "re five"]
    assert on_redis.seen.before["four"] == ["one", "re one"]
    assert on_redis.seen.before["five"] == ["one", "re one", "four", "re four"]
