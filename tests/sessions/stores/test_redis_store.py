"""Errors, deadlines, scripts and connections of the Redis store. ``test_stores.py`` tests the contract of all stores."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

from router.core.request.request import Tenant
from router.runtime.breaker import BreakerState, Patience
from router.sessions.stores.contract import EMPTY, Append, Begin, Begun, Corrupt, Fenced, Sid
from router.sessions.stores.redis import Reason, RedisLimits, RedisStore, RedisUnavailable
from router.sessions.stores.redis import store as redis_store
from router.sessions.stores.redis.eviction import Evictions
from tests.sessions.stores.redis_fakes import HELLO, ScriptedRedis, delaying_proxy
from tests.sessions.stores.redis_servers import RedisProcess, running

OWNER = Tenant("ann")
SLOW_MACHINE = RedisLimits(deadline_s=5.0)
"""Where the deadline is not what is tested."""
AT_ONCE = RedisLimits(deadline_s=0.2, patience=Patience(max_failures=2, min_pause_s=60, max_pause_s=60))


@asynccontextmanager
async def store_at(url: str, limits: RedisLimits = SLOW_MACHINE) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(url, limits, time.monotonic)
    try:
        yield store
    finally:
        await store.close()


def new_sid() -> Sid:
    return Sid(secrets.token_hex(16))


def begin(sid: Sid, *, entries: tuple[bytes, ...] = (b"one",)) -> Begin:
    return Begin(sid=sid, owner=OWNER, token=secrets.token_hex(8), lease_s=30, lifetime_s=60, turn=1, entries=entries)


def append(sid: Sid, begun: Begun, *, is_late: bool = False, fence: int | None = None) -> Append:
    return Append(
        sid=sid,
        owner=OWNER,
        generation=begun.generation,
        fence=begun.fence if fence is None else fence,
        turn=begun.turn,
        entries=(b"two",),
        ends=True,
        is_late=is_late,
        lifetime_s=60,
    )


async def begun_in(store: RedisStore, sid: Sid) -> Begun:
    found = await store.begin(begin(sid))
    assert isinstance(found, Begun)
    return found


@contextmanager
def configured(server: RedisProcess, name: str, value: str, before: str) -> Iterator[None]:
    server.ask("CONFIG", "SET", name, value)
    try:
        yield
    finally:
        server.ask("CONFIG", "SET", name, before)


# Scripts


async def test_scripts_are_told_again_to_a_server_that_forgot_them(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url) as store:
        sid = new_sid()
        begun = await begun_in(store, sid)
        redis_server.ask("SCRIPT", "FLUSH")
        assert await store.append(append(sid, begun)) == 2
        loaded = await store.load(sid, OWNER, EMPTY)
        assert loaded is not None
        assert loaded.tail == [b"one", b"two"]


async def test_all_of_a_session_is_one_key_and_so_lives_and_dies_as_one(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url) as store:
        sid = new_sid()
        begun = await begun_in(store, sid)
        await store.append(append(sid, begun))
        await store.commit_view(sid, OWNER, begun.generation, 0, b"view")
        assert redis_server.ask("KEYS", f"*{sid}*") == [f"wr1:{{{sid}}}:s".encode()]
        assert 0 < redis_server.ask("PTTL", f"wr1:{{{sid}}}:s") <= 60_000


async def test_a_connection_that_was_closed_while_nobody_used_it_fails_no_call(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url) as store:
        await store.ping()
        redis_server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for _ in range(20):  # turns in which the end of its connection is read
            await asyncio.sleep(0)
        await store.put_document(new_sid(), OWNER, b"body", 60)


# What is stored is not what a router wrote


@pytest.mark.parametrize(
    "spoil",
    [
        ("SET", "{key}", "text"),
        ("HDEL", "{key}", "owner"),
        ("HSET", "{key}", "head", "many"),
        ("HDEL", "{key}", "e:1"),
        ("HSET", "{key}", "t:1", "text"),
        ("HSET", "{key}", "line", "text"),
    ],
)
async def test_a_spoilt_session_is_corrupt_and_others_are_well(
    redis_server: RedisProcess, spoil: tuple[str, ...]
) -> None:
    async with store_at(redis_server.url) as store:
        spoilt, well = new_sid(), new_sid()
        begun = await begun_in(store, spoilt)
        redis_server.ask(*[word.format(key=f"wr1:{{{spoilt}}}:s") for word in spoil])
        corrupt = 0
        for call in (
            lambda: store.load(spoilt, OWNER, EMPTY),
            lambda: store.append(append(spoilt, begun)),
            lambda: store.begin(begin(spoilt)),
            lambda: store.leave(spoilt, OWNER, "token"),
        ):
            try:
                await call()
            except Corrupt:
                corrupt += 1
        assert corrupt > 0
        await begun_in(store, well)


async def test_a_spoilt_session_can_be_deleted_by_its_owner(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url) as store:
        sid = new_sid()
        await begun_in(store, sid)
        redis_server.ask("HSET", f"wr1:{{{sid}}}:s", "head", "many")
        assert not await store.delete(sid, Tenant("another"))
        assert await store.delete(sid, OWNER)
        await begun_in(store, sid)


async def test_a_spoilt_document_is_corrupt(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url) as store:
        key = new_sid()
        redis_server.ask("SET", f"wr1:{{{key}}}:d", "text")
        with pytest.raises(Corrupt):
            await store.get_document(key, OWNER)


# What Redis refuses


async def test_a_full_server_refuses_writes_and_is_read_still(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url) as store:
        sid = new_sid()
        begun = await begun_in(store, sid)
        with configured(redis_server, "maxmemory", "1", "0"):
            with pytest.raises(RedisUnavailable) as caught:
                await store.append(append(sid, begun))
            assert caught.value.reason is Reason.FULL
            loaded = await store.load(sid, OWNER, EMPTY)
        assert loaded is not None
        assert loaded.head == 1
        assert store.breaker_state is BreakerState.CLOSED


async def test_a_server_without_the_replicas_it_needs_refuses_writes(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url) as store:
        with configured(redis_server, "min-replicas-to-write", "1", "0"), pytest.raises(RedisUnavailable) as caught:
            await store.begin(begin(new_sid()))
        assert caught.value.reason is Reason.NO_REPLICAS


async def test_a_write_that_no_replica_has_is_not_acknowledged_and_may_have_happened(
    redis_server: RedisProcess,
) -> None:
    limits = RedisLimits(deadline_s=5, wait_replicas=1, wait_s=0.001)
    async with store_at(redis_server.url, limits) as careful, store_at(redis_server.url) as store:
        sid = new_sid()
        with pytest.raises(RedisUnavailable) as caught:
            await careful.begin(begin(sid))
        assert caught.value.reason is Reason.UNCONFIRMED
        loaded = await careful.load(sid, OWNER, EMPTY)
        assert loaded is not None
        assert loaded.is_claimed
        begun = await begun_in(store, new_sid())
        assert begun.turn == 1


async def test_a_server_that_became_a_replica_is_left() -> None:
    with running() as server:
        async with store_at(server.url) as store:
            sid = new_sid()
            begun = await begun_in(store, sid)
            server.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
            server.ask("REPLICAOF", "127.0.0.1", "1")
            for _ in range(2):
                with pytest.raises(RedisUnavailable) as caught:
                    await store.append(append(sid, begun))
            assert caught.value.reason is Reason.READONLY
            server.ask("REPLICAOF", "NO", "ONE")
            assert await store.append(append(sid, begun)) == 2


async def test_a_wrong_password_is_told_as_such_and_not_shown() -> None:
    with running() as server:
        server.ask("CONFIG", "SET", "requirepass", "right")
        async with store_at(server.url.replace("://", "://:wrong-canary@")) as store:
            with pytest.raises(RedisUnavailable) as caught:
                await store.ping()
        assert caught.value.reason is Reason.AUTH
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", Reason.LOADING),
        (b"-NOAUTH Authentication required.\r\n", Reason.AUTH),
        (b"-NOPERM this user has no permissions\r\n", Reason.AUTH),
        (b"-MASTERDOWN Link with MASTER is down\r\n", Reason.CLUSTER),
        (b"-CLUSTERDOWN The cluster is down\r\n", Reason.CLUSTER),
        (b"-MISCONF Errors writing to the AOF file\r\n", Reason.FULL),
        (b"-BUSY Redis is busy running a script\r\n", Reason.REFUSED),
        (b"-ERR Error running script: @user_script:5: -READONLY You can't write\r\n", Reason.READONLY),
        (b"-ERR Error running script: @user_script:5: OOM command not allowed\r\n", Reason.FULL),
        (b"?what\r\n", Reason.CONNECTION),
    ],
)
async def test_what_a_server_refuses_by_is_told_in_one_word(reply: bytes, reason: Reason) -> None:
    scripted = ScriptedRedis({b"EVALSHA": reply})
    async with scripted.serving() as url, store_at(url) as store:
        with pytest.raises(RedisUnavailable) as caught:
            await store.get_document(new_sid(), OWNER)
        assert caught.value.reason is reason


@pytest.mark.parametrize(
    "reply", [HELLO.replace(b"$6\r\n7.0.15", b"$6\r\n6.0.16"), b"-ERR unknown command `HELLO`\r\n"]
)
async def test_a_server_that_is_too_old_is_refused_by_its_version(reply: bytes) -> None:
    async with ScriptedRedis({b"HELLO": reply}).serving() as url, store_at(url) as store:
        with pytest.raises(RedisUnavailable, match=r"6\.2 is the oldest") as caught:
            await store.ping()
    assert caught.value.reason is Reason.TOO_OLD


# Deadlines


async def test_nobody_listens() -> None:
    async with store_at("redis://127.0.0.1:1") as store:
        with pytest.raises(RedisUnavailable) as caught:
            await store.load(new_sid(), OWNER, EMPTY)
    assert caught.value.reason is Reason.CONNECTION


async def test_a_server_that_hangs_costs_a_deadline_and_then_nothing_until_it_is_tried_again() -> None:
    limits = RedisLimits(deadline_s=0.2, patience=Patience(max_failures=2, min_pause_s=0.2, max_pause_s=0.2))
    with running() as server:
        async with store_at(server.url, limits) as store:
            await store.ping()
            server.send(signal.SIGSTOP)
            for expected in (Reason.TIMEOUT, Reason.TIMEOUT, Reason.PAUSED):
                started = time.monotonic()
                with pytest.raises(RedisUnavailable) as caught:
                    await store.get_document(new_sid(), OWNER)
                assert caught.value.reason is expected
                assert time.monotonic() - started < 1.0
            server.send(signal.SIGCONT)
            async with asyncio.timeout(10):
                while store.breaker_state is not BreakerState.CLOSED:
                    with suppress(RedisUnavailable):
                        await store.put_document(new_sid(), OWNER, b"body", 60)
                    await asyncio.sleep(0.01)


async def test_calls_beyond_the_bound_of_connections_wait_for_their_turn() -> None:
    are_two_asked = asyncio.Event()

    class Silent(ScriptedRedis):
        async def _word(self, reader: asyncio.StreamReader) -> bytes:
            word = await super()._word(reader)
            if word == b"EVALSHA" and self.asked.count(b"EVALSHA") == 1:
                are_two_asked.set()
            return word

    silent = Silent({b"EVALSHA": b""})
    limits = RedisLimits(deadline_s=0.3, max_connections=2, patience=Patience(max_failures=99))
    async with silent.serving() as url, store_at(url, limits) as store:
        calls = [asyncio.create_task(store.get_document(new_sid(), OWNER)) for _ in range(5)]
        await are_two_asked.wait()
        assert (silent.connections, store.pending, store.calls.waiting) == (2, 5, 3)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [getattr(error, "reason", None) for error in found] == [Reason.TIMEOUT] * 5
        assert store.pending == 0


@pytest.mark.parametrize(("body_bytes", "state"), [(100, BreakerState.OPEN), (100_000, BreakerState.CLOSED)])
async def test_only_small_calls_that_time_out_pause_the_way_for_all(body_bytes: int, state: BreakerState) -> None:
    limits = RedisLimits(deadline_s=0.05, patience=Patience(max_failures=2))
    async with ScriptedRedis({b"EVALSHA": b""}).serving() as url, store_at(url, limits) as store:
        for _ in range(2):
            with pytest.raises(RedisUnavailable, match="timeout"):
                await store.put_document(new_sid(), OWNER, b"x" * body_bytes, 0)
        assert store.breaker_state is state


async def test_a_reply_of_which_some_has_come_pauses_the_way_for_nobody() -> None:
    limits = RedisLimits(deadline_s=0.05, patience=Patience(max_failures=1))
    half = b"*4\r\n$5\r\nother\r\n$800000\r\nxxxxxxx"
    async with ScriptedRedis({b"EVALSHA": half}).serving() as url, store_at(url, limits) as store:
        with pytest.raises(RedisUnavailable, match="timeout"):
            await store.get_document(new_sid(), OWNER)
        assert store.breaker_state is BreakerState.CLOSED


async def test_a_loop_that_is_held_up_is_no_time_out_of_redis(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url, RedisLimits(deadline_s=0.1)) as store:
        sid = new_sid()
        await store.put_document(sid, OWNER, b"d", 60)
        for _ in range(3):
            call = asyncio.create_task(store.get_document(sid, OWNER))
            await asyncio.sleep(0)
            time.sleep(0.2)  # noqa: ASYNC251  # the loop is held up
            assert await call == b"d"


# Nobody reads what another asked for


async def cancel_everywhere(server: RedisProcess, cancellations: int) -> None:
    """Calls are cancelled after 0, 1, 2 … turns of the loop, among others that are not, on a slow way with few connections."""
    draw = random.Random(7)
    cancelled = 0
    async with (
        delaying_proxy(server.port, max_turns=4, seed=7) as port,
        store_at(f"redis://127.0.0.1:{port}", RedisLimits(deadline_s=60, max_connections=6)) as store,
    ):
        keys = [new_sid() for _ in range(12)]
        for key in keys:
            await store.put_document(key, OWNER, key.encode(), 0)

        async def ask(key: Sid) -> None:
            assert await store.get_document(key, OWNER) == key.encode()

        async def ask_and_leave(key: Sid) -> None:
            nonlocal cancelled
            while cancelled < cancellations:
                call = asyncio.create_task(ask(key))
                for _ in range(draw.randint(0, 40)):
                    await asyncio.sleep(0)
                if call.cancel():
                    cancelled += 1
                await asyncio.wait([call])
                if not call.cancelled():
                    call.result()

        async def ask_on(key: Sid) -> None:
            while cancelled < cancellations:
                await ask(key)

        async with asyncio.TaskGroup() as group:
            for key in keys[:8]:
                group.create_task(ask_and_leave(key))
            for key in keys[8:]:
                group.create_task(ask_on(key))
        assert store.pending == 0
        await asyncio.gather(*map(ask, keys))


async def test_a_cancelled_call_leaves_no_reply_to_another(redis_server: RedisProcess) -> None:
    await cancel_everywhere(redis_server, 500)


@pytest.mark.system
async def test_ten_thousand_cancelled_calls_leave_no_reply_to_another(redis_server: RedisProcess) -> None:
    await cancel_everywhere(redis_server, 10_000)


# Claims, where a primary was replaced


async def test_a_turn_of_the_same_number_that_another_claim_began_is_not_this_one(redis_server: RedisProcess) -> None:
    async with store_at(redis_server.url) as store:
        sid = new_sid()
        begun = await begun_in(store, sid)
        with pytest.raises(Fenced):
            await store.append(append(sid, begun, is_late=True, fence=begun.fence - 1))
        assert await store.append(append(sid, begun, is_late=True)) == 2


async def test_fences_of_two_servers_that_both_were_primary_differ(redis_server: RedisProcess) -> None:
    with running() as other:
        async with store_at(redis_server.url) as one, store_at(other.url) as two:
            sid = new_sid()
            assert (await begun_in(one, sid)).fence != (await begun_in(two, sid)).fence


# What a user of Redis must be allowed


async def test_it_needs_no_other_commands_and_keys_than_are_documented() -> None:
    rights = re.search(r"``(\+.*?)``", redis_store.__doc__ or "", re.DOTALL)
    assert rights is not None
    with running() as server:
        server.ask("ACL", "SETUSER", "router", "on", ">secret", "-@all", *rights[1].split())
        limits = RedisLimits(deadline_s=5, wait_replicas=0)
        async with store_at(server.url.replace("://", "://router:secret@") + "/1", limits) as store:
            sid, other = new_sid(), new_sid()
            begun = await begun_in(store, sid)
            await store.renew(sid, OWNER, begun.fence, 30)
            await store.append(append(sid, begun))
            await store.release(sid, OWNER, begun.fence)
            await store.leave(sid, OWNER, "token")
            assert await store.commit_view(sid, OWNER, begun.generation, 0, b"view")
            assert await store.set_attributes(sid, OWNER, b"attributes")
            assert await store.read_turn(sid, OWNER, 1)
            assert await store.load(sid, OWNER, EMPTY)
            assert await store.create(other, OWNER, entries=(), attributes=b"", turns=1, lifetime_s=0)
            assert await store.delete(sid, OWNER)
            await store.put_document(sid, OWNER, b"body", 0)
            assert await store.get_document(sid, OWNER) == b"body"
            assert await store.delete_document(sid, OWNER)
            await store.ping()
            told = server.ask("ACL", "LOG")
        assert [entry for entry in told if b"client|setinfo" not in entry] == []


# Evictions


def info(policy: str, evicted: int, max_bytes: int = 1 << 20) -> list[object]:
    return [
        b"# Memory\r\nused_memory:1\r\nmaxmemory:%d\r\nmaxmemory_policy:%b\r\n" % (max_bytes, policy.encode()),
        b"# Stats\r\nevicted_keys:%d\r\n" % evicted,
    ]


@pytest.mark.parametrize(
    ("told", "may_evict"),
    [
        (info("allkeys-lru", 0), True),
        (info("volatile-ttl", 0), True),
        (info("noeviction", 0), False),
        (info("allkeys-lru", 0, max_bytes=0), False),
    ],
)
def test_a_server_that_may_evict_is_told_of_once(
    told: list[object], may_evict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    evictions = Evictions()
    for _ in range(3):
        evictions.learn(told)
    assert evictions.may_evict is may_evict
    assert sum("may throw sessions away" in line for line in caplog.messages) == may_evict


def test_keys_that_are_evicted_while_the_router_looks_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    evictions = Evictions()
    for evicted in (7, 7, 9):
        evictions.learn(info("noeviction", evicted))
    assert evictions.evicted_keys == 9
    assert [record.__dict__["evicted_keys"] for record in caplog.records] == [2]


def test_a_server_that_does_not_say_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    evictions = Evictions()
    for _ in range(2):
        evictions.learn([RedisUnavailable(Reason.AUTH), RedisUnavailable(Reason.AUTH)])
    assert len(caplog.messages) == 1


async def test_redis_says_that_it_evicts_and_a_full_one_is_not_up() -> None:
    with running(("maxmemory 2mb", "maxmemory-policy allkeys-lru")) as server:
        async with store_at(server.url) as store:
            await store.tidy()
            assert store.evictions.may_evict
            server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
            server.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(RedisUnavailable, match="full"):
                await store.ping()
