"""The Redis store while primaries die, hang and change, under Sentinels and in a Cluster."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from redis.crc import key_slot

from router.core.request.request import Tenant
from router.sessions.stores.contract import EMPTY, Append, Begin, Begun, Sid
from router.sessions.stores.redis import Reason, RedisLimits, RedisStore, RedisUnavailable
from tests.sessions.stores.redis_servers import RedisProcess, Watched, clustered, watched

pytestmark = pytest.mark.system

T = TypeVar("T")

OWNER = Tenant("ann")
SAFE = RedisLimits(deadline_s=1.0, wait_replicas=1, wait_s=0.5)
BACK_S = 30.0
NODE_SETTINGS = ("min-replicas-to-write 1", "min-replicas-max-lag 2", "repl-diskless-sync-delay 0")


@pytest.fixture
def under_sentinels() -> Iterator[Watched]:
    with watched(NODE_SETTINGS) as servers:
        yield servers


@asynccontextmanager
async def store_at(url: str, limits: RedisLimits = SAFE) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(url, limits, time.monotonic)
    try:
        yield store
    finally:
        await store.close()


def new_sid() -> Sid:
    return Sid(secrets.token_hex(16))


async def eventually(call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Its first answer that is not RedisUnavailable."""
    async with asyncio.timeout(BACK_S):
        while True:
            try:
                return await call(*arguments)
            except RedisUnavailable:
                await asyncio.sleep(0.05)


async def turn(store: RedisStore, sid: Sid, *entries: bytes) -> None:
    """Raises RedisUnavailable only where it did not begin."""
    token = secrets.token_hex(16)
    try:
        begun = await store.begin(Begin(sid=sid, owner=OWNER, token=token, lease_s=60, lifetime_s=600))
    except RedisUnavailable:
        await eventually(store.leave, sid, OWNER, token)
        raise
    assert isinstance(begun, Begun)
    about = Append(
        sid=sid,
        owner=OWNER,
        generation=begun.generation,
        fence=begun.fence,
        turn=begun.turn,
        entries=entries,
        ends=True,
        lifetime_s=600,
    )
    await eventually(store.append, about)


async def log(store: RedisStore, sid: Sid) -> list[bytes]:
    loaded = await store.load(sid, OWNER, EMPTY)
    return list(loaded.tail) if loaded else []


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_what_was_acknowledged_outlives_its_primary(under_sentinels: Watched, fault: signal.Signals) -> None:
    async with store_at(under_sentinels.url) as store:
        sids = [new_sid() for _ in range(20)]
        for sid in sids:
            await eventually(turn, store, sid, b"one", b"two")
        old = under_sentinels.primary()
        assert old is not None
        old.send(fault)
        for sid in sids:
            assert await eventually(log, store, sid) == [b"one", b"two"]
        assert under_sentinels.primary() is not old
        if fault is signal.SIGSTOP:
            old.send(signal.SIGCONT)
        await eventually(turn, store, new_sid(), b"three")


async def test_a_sentinel_that_hangs_is_passed_over(under_sentinels: Watched) -> None:
    under_sentinels.sentinels[0].send(signal.SIGSTOP)
    async with store_at(under_sentinels.url) as store:
        await store.ping()


async def test_without_any_sentinel_it_is_said_that_there_is_no_primary(under_sentinels: Watched) -> None:
    for sentinel in under_sentinels.sentinels:
        sentinel.kill()
    async with store_at(under_sentinels.url) as store:
        with pytest.raises(RedisUnavailable) as caught:
            await store.ping()
    assert caught.value.reason is Reason.NO_PRIMARY


def cluster_url(nodes: list[RedisProcess]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes[:2])


async def test_sessions_lie_on_all_nodes_of_a_cluster() -> None:
    with clustered() as nodes:
        async with store_at(cluster_url(nodes), RedisLimits(deadline_s=1)) as store:
            sids = [new_sid() for _ in range(60)]
            for sid in sids:
                await turn(store, sid, b"one", b"two")
                await store.put_document(sid, OWNER, sid.encode(), 0)
            assert all(node.ask("DBSIZE") > 0 for node in nodes)
            assert sum(node.ask("DBSIZE") for node in nodes) == 120
            for sid in sids:
                assert await log(store, sid) == [b"one", b"two"]
                assert await store.get_document(sid, OWNER) == sid.encode()


async def test_sessions_are_found_while_their_slot_moves_and_after() -> None:
    with clustered() as nodes:
        async with store_at(cluster_url(nodes), RedisLimits(deadline_s=1)) as store:
            sid = new_sid()
            key = f"wr1:{{{sid}}}:s"
            slot = key_slot(key.encode())
            await turn(store, sid, b"one")
            source = next(node for node in nodes if node.ask("CLUSTER", "COUNTKEYSINSLOT", slot))
            target = next(node for node in nodes if node is not source)
            ids = {node.port: node.ask("CLUSTER", "MYID").decode() for node in nodes}
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
            await turn(store, sid, b"two")
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 1000)
            assert target.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
            await turn(store, sid, b"three")
            for node in (target, source, *nodes):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
            await turn(store, sid, b"four")
            assert await log(store, sid) == [b"one", b"two", b"three", b"four"]


async def test_in_a_cluster_a_dead_primary_is_followed_by_its_replica_and_others_go_on_meanwhile() -> None:
    with clustered(replicas=1) as nodes:
        async with store_at(cluster_url(nodes)) as store:
            sids = [new_sid() for _ in range(30)]
            for sid in sids:
                await eventually(turn, store, sid, b"one")
            dead = nodes[0]
            lost = {sid for sid in sids if f"wr1:{{{sid}}}:s".encode() in dead.ask("KEYS", "*")}
            assert lost
            for node in nodes:
                node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
            dead.send(signal.SIGKILL)
            for sid in set(sids) - lost:
                assert await log(store, sid) == [b"one"]
            for sid in lost:
                assert await eventually(log, store, sid) == [b"one"]
