"""The PostgreSQL index: its server, which may be away, its tables, and routers that share them."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from router.app.recall_index import open_index
from router.config.loading import load_config
from router.core.request.request import Sid, Tenant
from router.sessions.recall import rarity
from router.sessions.recall.chunks import last_place
from router.sessions.recall.index import Embedder, IndexUnavailable, Passage
from router.sessions.recall.postgres import PostgresIndex, PostgresLimits, rows
from router.sessions.recall.postgres import pool as pools
from router.sessions.recall.postgres.schema import SCHEMA
from tests.sessions.recall.contract import LetterEmbedder
from tests.sessions.recall.postgres_servers import PostgresProcess, database, running, shared
from tests.sessions.recall.test_embedders import Fleet

pytestmark = pytest.mark.system

SID, ANN, BOB = Sid("sid"), Tenant("ann"), Tenant("bob")
PATIENT = PostgresLimits(search_timeout_s=20, embed_timeout_s=20, call_timeout_s=20)
TABLES = ("session", "piece", "word", "vector")


@pytest.fixture
def url() -> Iterator[str]:
    with database(shared()) as made:
        yield made


@pytest.fixture
def server() -> Iterator[PostgresProcess]:
    with running() as started:
        yield started


@asynccontextmanager
async def opened(
    url: str, embedder: Embedder | None = None, limits: PostgresLimits = PATIENT
) -> AsyncIterator[PostgresIndex]:
    index = PostgresIndex(url, embedder, limits)
    try:
        yield index
    finally:
        await index.close()


async def find(index: PostgresIndex, query: str, sid: Sid = SID, owner: Tenant = ANN) -> list[int]:
    return list(await index.search(sid, owner, query, upto=10**6, limit=100))


async def ask(url: str, query: str, *parameters: object) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query, *parameters)]
    finally:
        await connection.close()


async def rows_in(url: str) -> dict[str, int]:
    return {table: len(await ask(url, f"SELECT FROM {SCHEMA}.{table}")) for table in TABLES}


async def recovered(index: PostgresIndex) -> list[int]:
    """What it finds, once it finds something again."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await find(index, "quince")
            except IndexUnavailable:
                await asyncio.sleep(0.05)


async def test_two_routers_that_start_at_once_make_the_tables_once(url: str) -> None:
    async with opened(url, LetterEmbedder()) as first, opened(url, LetterEmbedder()) as second:
        assert await asyncio.gather(*(index.newest(SID, ANN) for index in (first, second) * 8)) == [0] * 16


async def test_routers_share_an_index(url: str) -> None:
    async with opened(url) as first, opened(url) as second:
        await asyncio.gather(*(index.add(SID, ANN, [Passage(1, "apple")]) for index in (first, second)))
        await first.add(SID, ANN, [Passage(2, "apple")])
        assert await second.newest(SID, ANN) == 2
        assert await find(second, "apple") == [2, 1]


async def test_who_may_use_the_tables_need_not_be_allowed_to_make_them(url: str) -> None:
    async with opened(url, LetterEmbedder()) as index:
        await index.add(SID, ANN, [Passage(1, "quince")])
    user = f"guest_{random.getrandbits(40):x}"
    await ask(url, f"CREATE ROLE {user} LOGIN")
    for right in (f"USAGE ON SCHEMA {SCHEMA}", f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA}"):
        await ask(url, f"GRANT {right} TO {user}")
    async with opened(url.replace("router@", f"{user}@"), LetterEmbedder()) as index:
        await index.add(SID, ANN, [Passage(2, "quince")])
        assert await find(index, "quince") == [2, 1]


async def test_another_releases_tables_are_left_alone(url: str) -> None:
    await ask(url, "CREATE SCHEMA warmroute_recall_99")
    await ask(url, "CREATE TABLE warmroute_recall_99.session (another int)")
    async with opened(url) as index:
        await index.add(SID, ANN, [Passage(1, "quince")])
        assert await find(index, "quince") == [1]
    assert await ask(url, "SELECT * FROM warmroute_recall_99.session") == []


async def test_tables_that_somebody_dropped_are_made_again(url: str) -> None:
    async with opened(url) as index:
        await index.add(SID, ANN, [Passage(1, "quince")])
        await ask(url, f"DROP SCHEMA {SCHEMA} CASCADE")
        with pytest.raises(IndexUnavailable, match="UndefinedTable"):
            await index.newest(SID, ANN)
        assert await index.newest(SID, ANN) == 0


async def test_vectors_of_another_model_are_not_compared(url: str) -> None:
    class Other(LetterEmbedder):
        name = "short letters"
        dimensions = 3

        async def embed(self, texts: object) -> list[list[float]]:
            return [vector[:3] for vector in await super().embed(texts)]  # type: ignore[arg-type]

    mine, other = LetterEmbedder(), Other()
    async with opened(url, mine) as index, opened(url, other) as late:
        await index.add(SID, ANN, [Passage(1, "abba")])
        assert await find(late, "bab") == []
        await late.add(SID, ANN, [Passage(2, "cab")])
        assert other.embedded[1:] == ["abba", "cab"]
        assert await find(late, "bab") == [1, 2]
        assert await find(index, "bab") == [1]


async def test_what_is_forgotten_is_deleted(url: str) -> None:
    async with opened(url, LetterEmbedder()) as index:
        await index.add(SID, ANN, [Passage(n, "apple " * 200) for n in range(1, 60)])
        assert all((await rows_in(url)).values())
        await index.forget(SID, ANN)
    assert await rows_in(url) == dict.fromkeys(TABLES, 0)


async def test_sessions_to_which_nothing_was_added_for_their_lifetime_are_deleted(url: str) -> None:
    async with opened(url, LetterEmbedder(), PostgresLimits(lifetime_s=3600, call_timeout_s=20)) as index:
        for n in range(45):
            await index.add(Sid(f"old-{n}"), ANN, [Passage(1, "apple")])
        await ask(url, f"UPDATE {SCHEMA}.session SET touched_at = now() - interval '2 hours'")
        await index.add(Sid("old-7"), ANN, [Passage(2, "apple")])
        await index.add(SID, ANN, [Passage(1, "apple")])
        await asyncio.gather(index.sweep(), index.sweep())
        assert await rows_in(url) == {"session": 2, "piece": 3, "word": 2, "vector": 3}


async def test_without_a_lifetime_nothing_expires(url: str) -> None:
    async with opened(url) as index:
        await index.add(SID, ANN, [Passage(1, "apple")])
        await ask(url, f"UPDATE {SCHEMA}.session SET touched_at = '1999-01-01'")
        await index.sweep()
        assert await index.newest(SID, ANN) == 1


async def test_a_sessions_oldest_pieces_go_when_it_has_too_many(url: str) -> None:
    async with opened(url, LetterEmbedder(), PostgresLimits(max_session_pieces=3, search_timeout_s=20)) as index:
        await index.add(SID, ANN, [Passage(n, f"apple word{n}") for n in range(1, 6)])
        await index.add(SID, ANN, [Passage(6, "apple")])
        assert sorted(await find(index, "apple")) == [4, 5, 6]
        assert await index.newest(SID, ANN) == 6
        assert await ask(url, f"SELECT stem FROM {SCHEMA}.word ORDER BY stem") == [("appl",), ("word4",), ("word5",)]


async def test_a_word_that_is_everywhere_decides_only_where_there_is_no_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.sessions.recall.postgres.rows.MAX_POSTINGS", 3)
    async with opened(url) as index:
        await index.add(SID, ANN, [Passage(n, "apple") for n in range(1, 10)])
        assert (await find(index, "apple"))[:3] == [9, 8, 7]
        await index.add(SID, ANN, [Passage(10, "apple quince")])
        assert await find(index, "apple quince") == [10]


async def test_words_weigh_what_they_weigh_in_the_other_indexes(url: str) -> None:
    words = [f"word{n}" for n in range(12)]
    lots = random.Random(7)
    said = {n: lots.sample(words, lots.randint(1, 8)) for n in range(1, 80)}
    async with opened(url) as index:
        await index.add(SID, ANN, [Passage(n, " ".join(each)) for n, each in said.items()])
        for asked in (words[:3], words[4:9], [*words[:2], "absent"]):
            key = (ANN.encode(), SID.encode())
            found = await ask(url, rows.BY_WORDS, *key, asked, last_place(100), rows.MAX_POSTINGS, 50)
            postings = [[n for n, each in said.items() if word in each] for word in asked]
            expected = rarity.rank(postings, len(said))[:50]
            assert [number for number, _ in found] == [number for number, _ in expected]
            assert all(
                math.isclose(float(str(share)), exact) for (_, share), (_, exact) in zip(found, expected, strict=True)
            )


async def test_half_a_surrogate_pair_hides_no_other_text(url: str) -> None:
    async with opened(url) as index:
        await index.add(SID, ANN, [Passage(1, "a quince \ud83d cut short"), Passage(2, "quince")])
        assert await find(index, "quince \ud83d") == [2, 1]


async def test_the_configuration_opens_it_with_its_bounds_and_what_sweeps_it(url: str) -> None:
    settings = {"context.recall_index": url, "context.recall_lifetime_s": 60, "context.recall_timeout_s": 10}
    opened_index = await open_index(load_config(None, {}, settings), Fleet(), lambda: 0.0, lambda: 0.0)
    index = opened_index.index
    await index.add(SID, ANN, [Passage(1, "quince")])
    assert await index.search(SID, ANN, "quince", upto=1, limit=1) == [1]
    await ask(url, f"UPDATE {SCHEMA}.session SET touched_at = now() - interval '2 minutes'")
    assert opened_index.sweep is not None
    await opened_index.sweep()
    assert await index.newest(SID, ANN) == 0
    assert (index.pending, index.max_pending, index.searches_without_meaning) == (0, 256, 0)
    await opened_index.aclose()
    with pytest.raises(IndexUnavailable):
        await index.newest(SID, ANN)


async def test_it_starts_without_its_server_and_finds_it_later(server: PostgresProcess) -> None:
    server.end()
    async with opened(server.url) as index:
        with pytest.raises(IndexUnavailable):
            await index.newest(SID, ANN)
        server.start()
        await index.add(SID, ANN, [Passage(1, "quince")])
        assert await find(index, "quince") == [1]


async def test_a_server_that_went_away_is_unavailable_and_found_again_when_it_is_back(server: PostgresProcess) -> None:
    async with opened(server.url) as index:
        await index.add(SID, ANN, [Passage(1, "quince")])
        server.end()
        for _ in range(pools.PATIENCE.max_failures):
            with pytest.raises(IndexUnavailable):
                await find(index, "quince")
        with pytest.raises(IndexUnavailable, match="lately"):
            await find(index, "quince")
        server.start()
        assert await recovered(index) == [1]


async def test_a_server_that_hangs_is_unavailable_within_the_deadline_and_found_again(server: PostgresProcess) -> None:
    limits = PostgresLimits(search_timeout_s=0.2, call_timeout_s=20)
    async with opened(server.url, None, limits) as index:
        await index.add(SID, ANN, [Passage(1, "quince")])
        server.stop()
        began_at = asyncio.get_running_loop().time()
        for _ in range(pools.PATIENCE.max_failures):
            with pytest.raises(IndexUnavailable, match="no answer in time"):
                await find(index, "quince")
        took_s = asyncio.get_running_loop().time() - began_at
        assert 0.2 * pools.PATIENCE.max_failures <= took_s < 5
        assert index.pending == 0
        server.go_on()
        assert await recovered(index) == [1]


@asynccontextmanager
async def blocked(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Holds what searches need."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        await connection.execute(f"LOCK TABLE {SCHEMA}.session")
        yield connection
    finally:
        connection.terminate()


async def until_waiting(connection: asyncpg.Connection, calls: int) -> None:
    async with asyncio.timeout(20):
        while await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < calls:
            await asyncio.sleep(0.01)


async def test_a_server_that_hangs_in_the_middle_of_a_call_holds_nobody_beyond_the_deadline(
    server: PostgresProcess,
) -> None:
    async with opened(server.url, None, PostgresLimits(search_timeout_s=3, call_timeout_s=20)) as index:
        await index.add(SID, ANN, [Passage(1, "quince")])
        async with blocked(server.url) as holder:
            late, left = (asyncio.create_task(find(index, "quince")) for _ in range(2))
            await until_waiting(holder, 2)
            server.stop()
            left.cancel()
            async with asyncio.timeout(20):
                with pytest.raises(asyncio.CancelledError):
                    await left
                with pytest.raises(IndexUnavailable, match="no answer in time"):
                    await late
            assert index.pending == 0
            server.go_on()
        assert await recovered(index) == [1]


async def test_a_call_that_was_cancelled_takes_its_connection_with_it(url: str) -> None:
    async with opened(url) as index:
        await index.add(SID, ANN, [Passage(1, "quince")])
        async with blocked(url) as holder:
            call = asyncio.create_task(find(index, "quince"))
            await until_waiting(holder, 1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert index._pool._idle == []
        assert await find(index, "quince") == [1]


async def test_a_call_that_is_cancelled_leaves_no_reply_to_another(url: str) -> None:
    sids = [Sid(f"sid-{n}") for n in range(8)]
    lots = random.Random(3)
    async with opened(url, None, PostgresLimits(max_connections=2, search_timeout_s=20)) as index:
        for n, sid in enumerate(sids, 1):
            await index.add(sid, ANN, [Passage(n, "quince")])
        ended = 0
        for _ in range(150):
            calls = [asyncio.create_task(find(index, "quince", sid)) for sid in sids]
            for _ in range(lots.randint(0, 12)):
                await asyncio.sleep(0)
            for call in lots.sample(calls, 5):
                call.cancel()
            found = await asyncio.gather(*calls, return_exceptions=True)
            for n, each in enumerate(found, 1):
                assert isinstance(each, asyncio.CancelledError) or each == [n]
                ended += each == [n]
        assert ended >= 450
        assert index.pending == 0


async def test_an_addition_that_is_cancelled_is_whole_or_not_there(url: str) -> None:
    passages = [Passage(n, f"quince {n} " + "filler words " * 50) for n in range(1, 40)]
    async with opened(url) as index:
        await index.newest(SID, ANN)
        for n in range(1, 12):
            sid = Sid(f"sid-{n}")
            call = asyncio.create_task(index.add(sid, ANN, passages))
            for _ in range(n * 3):
                await asyncio.sleep(0.0005)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert len(await find(index, "quince", sid)) == await index.newest(sid, ANN)


async def test_no_more_calls_wait_than_may(url: str) -> None:
    async with opened(url, None, PostgresLimits(max_connections=1, max_pending=3, call_timeout_s=20)) as index:
        answers = await asyncio.gather(*(index.newest(SID, ANN) for _ in range(5)), return_exceptions=True)
        assert answers[:3] == [0, 0, 0]
        assert [type(answer) for answer in answers[3:]] == [IndexUnavailable] * 2
        assert index.pending == 0


async def test_no_more_connections_are_made_than_may_be(url: str) -> None:
    async with opened(url, None, PostgresLimits(max_connections=3, call_timeout_s=20)) as index:
        await asyncio.gather(*(index.newest(SID, ANN) for _ in range(40)))
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert await ask(url, query) == [(3,)]


async def test_what_is_said_of_a_failure_quotes_neither_password_nor_text(url: str) -> None:
    secret = url.replace("router@", "nobody-there:hunter2@")
    async with opened(secret) as index:
        with pytest.raises(IndexUnavailable) as raised:
            await index.newest(SID, ANN)
    assert "hunter2" not in str(raised.value)
    assert "28000" in str(raised.value)
