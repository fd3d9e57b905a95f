"""File, thread and bounds of the SQLite index."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from router.core.request.request import Sid, Tenant
from router.runtime.sqlite_thread import IN_MEMORY
from router.sessions.recall.index import IndexUnavailable, Passage
from router.sessions.recall.sqlite import IndexLimits, SqliteIndex
from router.sessions.recall.sqlite.file import TABLES
from tests.sessions.recall.contract import LetterEmbedder

SID, ANN = Sid("sid"), Tenant("ann")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "recall.db"


async def find(index: SqliteIndex, query: str, sid: Sid = SID) -> list[int]:
    return list(await index.search(sid, ANN, query, upto=10**6, limit=100))


def rows_in(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


async def test_it_is_there_again_when_the_file_is_opened_again(path: Path) -> None:
    for embedder in (LetterEmbedder(), LetterEmbedder()):
        index = await SqliteIndex.open(path, embedder)
        await index.add(SID, ANN, [Passage(1, "apple"), Passage(2, "quince")])
        assert await find(index, "quince") == [2, 1]
        await index.close()
    assert embedder.embedded == ["quince"]


async def test_only_its_owner_can_read_the_file(path: Path) -> None:
    index = await SqliteIndex.open(path)
    await index.add(SID, ANN, [Passage(1, "apple")])
    assert [stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()] == [0o600] * 3
    await index.close()


async def test_another_programs_file_is_not_touched(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mail (body)")
    with pytest.raises(IndexUnavailable, match="another program"):
        await SqliteIndex.open(path)
    assert rows_in(path, "sqlite_master") == 1


async def test_what_is_no_database_is_unavailable(path: Path) -> None:
    path.parent.mkdir()
    with open(path, "wb") as file:  # noqa: ASYNC230
        file.write(b"no database " * 1000)
    with pytest.raises(IndexUnavailable, match="NOTADB"):
        await SqliteIndex.open(path)


async def test_a_file_system_without_shared_memory_still_holds_an_index(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_connection: sqlite3.Connection, _synchronous: str) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("router.sessions.recall.sqlite.file.begin_wal", refused)
    index = await SqliteIndex.open(path)
    await index.add(SID, ANN, [Passage(1, "apple")])
    assert await find(index, "apple") == [1]
    await index.close()


async def test_a_file_of_another_release_is_begun_anew(path: Path) -> None:
    index = await SqliteIndex.open(path)
    await index.add(SID, ANN, [Passage(1, "apple")])
    await index.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    index = await SqliteIndex.open(path)
    assert await index.newest(SID, ANN) == 0
    await index.close()


async def test_two_routers_share_a_file(path: Path) -> None:
    first, second = await asyncio.gather(SqliteIndex.open(path), SqliteIndex.open(path))
    await asyncio.gather(*(index.add(SID, ANN, [Passage(1, "apple")]) for index in (first, second)))
    await first.add(SID, ANN, [Passage(2, "apple")])
    assert await second.newest(SID, ANN) == 2
    assert await find(second, "apple") == [2, 1]
    await first.close()
    await second.close()


async def test_vectors_of_another_model_are_not_compared(path: Path) -> None:
    index = await SqliteIndex.open(path, LetterEmbedder())
    await index.add(SID, ANN, [Passage(1, "apple")])
    await index.close()
    other = LetterEmbedder()
    other.name = "other letters"
    index = await SqliteIndex.open(path, other)
    assert rows_in(path, "vector") == 0
    await index.add(SID, ANN, [Passage(2, "quince")])
    assert other.embedded == ["apple", "quince"]
    await index.close()


async def test_what_is_forgotten_is_deleted(path: Path) -> None:
    index = await SqliteIndex.open(path, LetterEmbedder())
    await index.add(SID, ANN, [Passage(n, "apple " * 200) for n in range(1, 400)])
    await index.forget(SID, ANN)
    await index.close()
    assert {table: rows_in(path, table) for table in TABLES} == {**dict.fromkeys(TABLES, 0), "total": 1, "model": 1}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT bytes FROM total").fetchone() == (0,)


async def test_what_is_forgotten_is_overwritten_in_the_log_of_writes_too(path: Path) -> None:
    words = b"my cat is called Mimi"
    index = await SqliteIndex.open(path)
    await index.add(SID, ANN, [Passage(1, words.decode())])
    await index.forget(SID, ANN)
    await index.tidy()
    assert [file.name for file in path.parent.iterdir() if words in file.read_bytes()] == []
    await index.close()


async def test_a_sessions_oldest_pieces_go_when_it_has_too_many(path: Path) -> None:
    index = await SqliteIndex.open(path, LetterEmbedder(), IndexLimits(max_session_pieces=3))
    await index.add(SID, ANN, [Passage(n, f"apple word{n}") for n in range(1, 6)])
    await index.add(SID, ANN, [Passage(6, "apple")])
    assert sorted(await find(index, "apple")) == [4, 5, 6]
    assert await index.newest(SID, ANN) == 6
    await index.close()


async def test_the_oldest_sessions_go_when_there_are_too_many_bytes(path: Path) -> None:
    index = await SqliteIndex.open(path, None, IndexLimits(max_bytes=1000))
    sids = [Sid(f"sid-{n}") for n in range(5)]
    for sid in sids[:4]:
        await index.add(sid, ANN, [Passage(1, "x" * 300)])
    await index.add(sids[1], ANN, [Passage(2, "y" * 300)])
    kept = [sid for sid in sids if await index.newest(sid, ANN)]
    assert kept == [sids[1], sids[3]]
    await index.add(sids[4], ANN, [Passage(1, "word " * 600)])
    assert [sid for sid in sids if await index.newest(sid, ANN)] == [sids[4]]
    await index.close()


async def test_a_session_to_which_nothing_was_added_for_long_is_deleted(path: Path) -> None:
    now = 1000.0
    index = await SqliteIndex.open(path, None, IndexLimits(lifetime_s=60), wall_clock=lambda: now)
    old, added_to = Sid("old"), Sid("added to")
    for sid in (old, added_to):
        await index.add(sid, ANN, [Passage(1, "apple")])
    now += 50
    await index.add(added_to, ANN, [Passage(2, "apple")])
    now += 50
    await index.sweep()
    assert (await index.newest(old, ANN), await index.newest(added_to, ANN)) == (0, 2)
    assert index.bytes == 2 * len("apple")
    assert rows_in(path, "piece") == 2
    await index.close()


async def test_without_a_lifetime_nothing_expires() -> None:
    now = 1000.0
    index = await SqliteIndex.open(IN_MEMORY, wall_clock=lambda: now)
    await index.add(SID, ANN, [Passage(1, "apple")])
    now += 10**9
    await index.sweep()
    assert await index.newest(SID, ANN) == 1
    await index.close()


async def test_it_says_how_much_it_has_and_what_went(path: Path) -> None:
    index = await SqliteIndex.open(path, None, IndexLimits(max_bytes=1000, max_session_pieces=3))
    assert (index.bytes, index.max_bytes, index.evicted) == (0, 1000, {"sessions": 0, "pieces": 0})
    await index.add(SID, ANN, [Passage(number, "x" * 100) for number in range(1, 6)])
    assert (index.bytes, index.evicted) == (300, {"sessions": 0, "pieces": 2})
    others = [Sid(f"other-{number}") for number in range(8)]
    await asyncio.gather(*(index.add(sid, ANN, [Passage(1, "y" * 100)]) for sid in others))
    assert (index.bytes, index.evicted) == (800, {"sessions": 1, "pieces": 2})
    await asyncio.gather(*(index.add(sid, ANN, [Passage(2, "y" * 100)]) for sid in others[:5]))
    assert index.bytes <= 1000
    assert index.evicted["sessions"] == 1 + 8 - sum([await index.newest(sid, ANN) > 0 for sid in others])
    await index.close()
    again = await SqliteIndex.open(path)
    assert again.bytes == index.bytes
    await again.forget(others[4], ANN)
    assert again.bytes == index.bytes - 200
    await again.close()


async def test_vectors_are_among_what_it_has() -> None:
    words, both = await SqliteIndex.open(IN_MEMORY), await SqliteIndex.open(IN_MEMORY, LetterEmbedder())
    for index in (words, both):
        await index.add(SID, ANN, [Passage(1, "apple")])
    assert both.bytes > words.bytes == len("apple")
    for index in (words, both):
        await index.close()


async def test_a_query_that_is_not_embedded_in_time_is_found_by_words() -> None:
    class Asleep(LetterEmbedder):
        async def embed(self, texts: Sequence[str]) -> list[list[float]]:
            if texts == ["quince"]:
                await asyncio.Event().wait()
            return await super().embed(texts)

    index = await SqliteIndex.open(IN_MEMORY, Asleep(), IndexLimits(embed_timeout_s=0.01, search_timeout_s=30))
    await index.add(SID, ANN, [Passage(1, "apple"), Passage(2, "a quince")])
    assert await find(index, "quince") == [2]
    assert index.searches_without_meaning == 1
    await index.close()


async def test_a_search_that_must_wait_too_long_is_given_up() -> None:
    index = await SqliteIndex.open(IN_MEMORY, None, IndexLimits(search_timeout_s=0.01))
    goes_on = threading.Event()
    work = asyncio.create_task(index._file.read(lambda _: goes_on.wait(30)))
    await asyncio.sleep(0)
    with pytest.raises(IndexUnavailable, match="no answer within"):
        await find(index, "apple")
    goes_on.set()
    assert await work
    await index.close()


async def test_no_more_calls_wait_than_may() -> None:
    index = await SqliteIndex.open(IN_MEMORY, None, IndexLimits(max_pending=3))
    answers = await asyncio.gather(*(index.newest(SID, ANN) for _ in range(5)), return_exceptions=True)
    assert answers[:3] == [0, 0, 0]
    assert [type(answer) for answer in answers[3:]] == [IndexUnavailable] * 2
    assert index.pending == 0
    await index.close()


async def test_a_word_that_is_everywhere_is_found_all_the_same_where_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.sessions.recall.sqlite.rows.MAX_POSTINGS", 3)
    index = await SqliteIndex.open(IN_MEMORY)
    await index.add(SID, ANN, [Passage(n, "apple") for n in range(1, 10)])
    assert (await find(index, "apple"))[:3] == [9, 8, 7]
    await index.add(SID, ANN, [Passage(10, "apple quince")])
    assert await find(index, "apple quince") == [10]
    assert (await find(index, "apple medlar"))[:3] == [10, 9, 8], "a word that nothing has is as good as none"
    await index.close()


async def test_vectors_of_pieces_that_went_are_not_found_though_their_block_stays(path: Path) -> None:
    index = await SqliteIndex.open(path, LetterEmbedder(), IndexLimits(max_session_pieces=2))
    for number in range(1, 5):
        await index.add(SID, ANN, [Passage(number, "apple")])
    assert rows_in(path, "vector") == 1
    assert await find(index, "pale") == [4, 3]
    await index.close()


async def test_many_vectors_are_kept_in_few_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.sessions.recall.sqlite.rows.MAX_BLOCK_BYTES", 1000)
    index = await SqliteIndex.open(path, LetterEmbedder())
    for number in range(1, 201):
        await index.add(SID, ANN, [Passage(number, "z" if number == 7 else "a")])
    assert rows_in(path, "vector") == 7
    assert (await find(index, "zz"))[0] == 7
    await index.forget(SID, ANN)
    assert rows_in(path, "vector") == 0
    await index.close()
