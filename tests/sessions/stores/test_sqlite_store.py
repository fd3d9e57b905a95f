"""File, threads, clocks and errors of the SQLite store. ``test_stores.py`` tests the contract of all stores."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from router.core.request.request import Tenant
from router.sessions.stores.contract import (
    EMPTY,
    LINE_PATIENCE_S,
    Begun,
    Busy,
    Corrupt,
    Crowded,
    Cursor,
    Fenced,
    Sid,
    StoreUnavailable,
    Usage,
)
from router.sessions.stores.sqlite import SqliteStore, rows
from router.sessions.stores.sqlite.schema import APPLICATION_ID, MIGRATIONS, PARTS
from router.sessions.stores.sqlite.store import MAX_OWNER_CALLS, SWEPT_DOCUMENTS, SWEPT_ENTRIES, read_boot
from tests.sessions.stores.contract import LEASE_S, OWNER, STRANGER, Clocks, asks, more

SID = Sid("sid")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions.db"


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@asynccontextmanager
async def opened(path: Path, clocks: Clocks, **options: Any) -> AsyncIterator[SqliteStore]:
    unix_time: Callable[[], float] = options.pop("unix_time", clocks.unix_time)
    store = await SqliteStore.open(path, clocks.monotonic, unix_time, **{"boot": "this", **options})
    try:
        yield store
    finally:
        await store.close()


async def begun_in(store: SqliteStore, sid: Sid = SID, **changes: Any) -> Begun:
    answer = await store.begin(asks(sid, **changes))
    assert isinstance(answer, Begun)
    return answer


async def tail_in(store: SqliteStore, sid: Sid = SID) -> list[bytes]:
    loaded = await store.load(sid, OWNER, EMPTY)
    assert loaded is not None
    return list(loaded.tail)


async def keep(store: SqliteStore, sid: Sid, entries: int, lifetime_s: float) -> None:
    assert await store.create(
        sid, OWNER, entries=[b"x" * 100] * entries, attributes=b"a", turns=1, lifetime_s=lifetime_s
    )


def content(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)


def count(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# The file


async def test_what_was_stored_is_there_when_the_file_is_opened_again(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        begun = await begun_in(store, entries=(b"1",), turn=1)
        await store.append(more(SID, begun, b"2", ends=True))
        await store.commit_view(SID, OWNER, begun.generation, 0, b"v")
    async with opened(path, clocks) as store:
        again = await begun_in(store)
        assert (list(again.tail), again.view, again.turn) == ([b"1", b"2"], b"v", 2)
        assert (again.generation, again.fence > begun.fence) == (begun.generation, True)


async def test_only_its_owner_can_read_what_it_makes(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        await begun_in(store)
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert modes == {f"sessions.db{kind}": 0o600 for kind in ("", "-wal", "-shm", "-reserve")}


@pytest.mark.parametrize(("synchronous", "level"), [("NORMAL", 1), ("FULL", 2)])
async def test_how_sure_a_write_must_be_is_what_was_asked(
    path: Path, clocks: Clocks, synchronous: Any, level: int
) -> None:
    async with opened(path, clocks, synchronous=synchronous) as store:
        connection = store._writer._thread.connection
        assert connection is not None
        ask = store._writer._thread.submit
        assert ask(lambda: connection.execute("PRAGMA synchronous").fetchone()).result() == (level,)
        assert ask(lambda: connection.execute("PRAGMA journal_mode").fetchone()).result() == ("wal",)


async def test_what_a_file_of_the_first_version_has_is_counted_and_can_be_deleted(path: Path, clocks: Clocks) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as old, old:
        for statement in MIGRATIONS[0]:
            old.execute(statement)
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("PRAGMA user_version = 1")
        old.execute(
            "INSERT INTO session VALUES (?, ?, 'g', 0, 9e999, 2, 1, 1, 0, '', 0, 0, 'this', 0, '')", (SID, OWNER)
        )
        old.executemany("INSERT INTO entry VALUES (?, ?, ?)", [(SID, seq, b"x" * 1000) for seq in (1, 2)])
        old.execute("INSERT INTO document VALUES ('d', ?, ?, 9e999)", (OWNER, b"d" * 100))
    async with opened(path, clocks) as store:
        (usage,) = (await store.usage()).values()
        assert (usage.sessions, usage.documents) == (1, 1)
        assert usage.bytes == 512 + 2 * 1064 + 100 + 256
        assert len(await tail_in(store)) == 2
        assert await store.delete(SID, OWNER)
        assert await store.delete_document(Sid("d"), OWNER)
        assert set((await store.usage()).values()) == {Usage()}


async def test_a_newer_file_is_refused_and_not_touched(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = content(path)
    with pytest.raises(StoreUnavailable, match="newer release"):
        await SqliteStore.open(path, clocks.monotonic, clocks.unix_time)
    assert content(path) == before


async def test_another_programs_database_is_refused_and_not_touched(path: Path, clocks: Clocks) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = content(path)
    with pytest.raises(StoreUnavailable, match="another program"):
        await SqliteStore.open(path, clocks.monotonic, clocks.unix_time)
    assert content(path) == before


async def test_a_file_that_is_no_database_is_refused(path: Path, clocks: Clocks) -> None:
    write(path, b"no database at all " * 100)
    with pytest.raises(StoreUnavailable, match=r"sessions\.db.*not a database"):
        await SqliteStore.open(path, clocks.monotonic, clocks.unix_time)


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, clocks: Clocks) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="Not a directory"):
        await SqliteStore.open(tmp_path / "file" / "deeper" / "sessions.db", clocks.monotonic, clocks.unix_time)


async def test_several_may_open_a_new_file_at_once(path: Path, clocks: Clocks) -> None:
    stores = await asyncio.gather(*(SqliteStore.open(path, clocks.monotonic, clocks.unix_time) for _ in range(5)))
    for store in stores:
        await keep(store, Sid(f"of {id(store)}"), 1, 0)
        await store.close()
    assert count(path, "session") == 5


# Clocks


async def test_a_wall_clock_that_jumps_takes_no_claim_away(path: Path, clocks: Clocks) -> None:
    jumps_s = [0.0]
    async with opened(path, clocks, unix_time=lambda: clocks.unix_time() + sum(jumps_s)) as store:
        begun = await begun_in(store, lifetime_s=0)
        for jump_s in (3600.0, -7200.0):
            jumps_s.append(jump_s)
            assert await store.begin(asks(SID, waits=False)) == Busy(0)
            await store.renew(SID, OWNER, begun.fence, LEASE_S)


async def test_leases_and_places_in_the_line_end_with_the_boot(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        before = await begun_in(store)
        assert await store.begin(asks(SID)) == Busy(1)
    async with opened(path, clocks, boot="next") as store:
        begun = await begun_in(store, waits=False)
        with pytest.raises(Fenced):
            await store.append(more(SID, before, b"x"))
        assert await store.append(more(SID, begun, b"1")) == 1


async def test_a_claim_from_before_the_boot_is_good_again_once_it_is_renewed(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        begun = await begun_in(store)
    async with opened(path, clocks, boot="next") as store:
        await store.renew(SID, OWNER, begun.fence, LEASE_S)
        assert await store.begin(asks(SID, waits=False)) == Busy(0)


def test_a_boot_is_told_from_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_boot() == read_boot()
    monkeypatch.setattr("router.sessions.stores.sqlite.store.BOOT_ID", tmp_path / "absent")
    assert read_boot() != read_boot()


# Two processes


async def test_two_stores_on_one_file_heed_each_others_claims_and_line(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as one, opened(path, clocks) as other:
        begun = await begun_in(one)
        waiting = asks(SID)
        assert await other.begin(waiting) == Busy(1)
        await one.append(more(SID, begun, b"1", ends=True))
        assert await one.begin(asks(SID)) == Busy(2)
        second = await other.begin(waiting)
        assert isinstance(second, Begun)
        assert list(second.tail) == [b"1"]
        await clocks.advance(LEASE_S + LINE_PATIENCE_S)
        await begun_in(one)
        with pytest.raises(Fenced):
            await other.append(more(SID, second, b"x"))


async def test_turns_through_two_stores_lose_and_double_nothing(path: Path, clocks: Clocks) -> None:
    async def take_turns(store: SqliteStore, name: str) -> None:
        for n in range(20):
            begin = asks(SID)
            while not isinstance(begun := await store.begin(begin), Begun):
                await asyncio.sleep(0)
            await store.append(more(SID, begun, f"{name}{n}".encode(), ends=True))

    async with opened(path, clocks) as one, opened(path, clocks) as other:
        await asyncio.gather(take_turns(one, "a"), take_turns(one, "b"), take_turns(other, "c"))
        entries = await tail_in(one)
    for name in "abc":
        assert [each for each in entries if each.startswith(name.encode())] == [
            f"{name}{n}".encode() for n in range(20)
        ]
    assert len(entries) == 60


# Bounds and cancellation


class Gate:
    """A clock that stops the thread that reads it until it is opened."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self.is_open = threading.Event()
        self.is_open.set()
        self.is_reached = threading.Event()

    def unix_time(self) -> float:
        self.is_reached.set()
        assert self.is_open.wait(20)
        return self._clocks.unix_time()

    async def stop(self, store: SqliteStore) -> asyncio.Task[Begun]:
        """A ``begin`` that is under way in the thread and cannot go on."""
        self.is_open.clear()
        self.is_reached.clear()
        task = asyncio.create_task(begun_in(store, entries=(b"1",), turn=1))
        await asyncio.to_thread(self.is_reached.wait, 20)
        return task


async def test_calls_beyond_the_bound_are_refused_at_once(path: Path, clocks: Clocks) -> None:
    gate = Gate(clocks)
    async with opened(path, clocks, unix_time=gate.unix_time, max_pending=2) as store:
        first = await gate.stop(store)
        others = [asyncio.create_task(store.set_attributes(SID, OWNER, b"a")) for _ in range(MAX_OWNER_CALLS + 1)]
        await asyncio.sleep(0)
        assert store.pending == 2 + MAX_OWNER_CALLS
        with pytest.raises(Crowded, match="2 calls of the tenant wait") as refused:
            await store.set_attributes(SID, OWNER, b"b")
        assert not refused.value.was_asked
        gate.is_open.set()
        await asyncio.gather(first, *others)
        assert store.pending == 0
        assert await store.set_attributes(SID, OWNER, b"b")


async def test_a_flood_of_one_owner_delays_another_by_the_calls_that_the_thread_has(path: Path, clocks: Clocks) -> None:
    gate = Gate(clocks)
    ended: list[Tenant] = []

    async def put(n: int, owner: Tenant) -> None:
        await store.put_document(Sid(f"{owner}{n}"), owner, b"d", 0)
        ended.append(owner)

    async with opened(path, clocks, unix_time=gate.unix_time) as store:
        first = await gate.stop(store)
        flood = [asyncio.create_task(put(n, OWNER)) for n in range(50)]
        await asyncio.sleep(0)
        other = asyncio.create_task(put(0, STRANGER))
        await asyncio.sleep(0)
        gate.is_open.set()
        await asyncio.gather(first, other, *flood)
    assert ended.index(STRANGER) <= MAX_OWNER_CALLS


async def test_a_call_whose_time_is_over_before_its_turn_never_happens(path: Path, clocks: Clocks) -> None:
    gate = Gate(clocks)
    async with opened(path, clocks, unix_time=gate.unix_time) as store:
        first = await gate.stop(store)
        late = asyncio.create_task(store.put_document(SID, OWNER, b"d", 0))
        await asyncio.sleep(0)
        await clocks.advance(6)
        gate.is_open.set()
        with pytest.raises(StoreUnavailable, match="its time was over") as refused:
            await late
        assert not refused.value.was_asked
        await first
        assert await store.get_document(SID, OWNER) is None


async def test_a_loop_that_is_held_up_is_no_time_out_of_the_store(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks, timeout_s=0.05) as store:
        call = asyncio.create_task(store.put_document(SID, OWNER, b"d", 0))
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251  # the loop is held up
        await call
        assert await store.get_document(SID, OWNER) == b"d"


async def test_a_call_that_takes_too_long_is_given_up_and_comes_out_whole(path: Path, clocks: Clocks) -> None:
    gate = Gate(clocks)
    async with opened(path, clocks, unix_time=gate.unix_time, timeout_s=0.5) as store:
        stopped = await gate.stop(store)
        with pytest.raises(StoreUnavailable, match="no answer"):
            await stopped
        gate.is_open.set()
        await store.set_attributes(SID, OWNER, b"behind it")
        assert await tail_in(store) == [b"1"]


async def test_a_call_that_is_cancelled_in_the_queue_never_happens(path: Path, clocks: Clocks) -> None:
    gate = Gate(clocks)
    async with opened(path, clocks, unix_time=gate.unix_time) as store:
        first = await gate.stop(store)
        second = asyncio.create_task(store.put_document(SID, OWNER, b"d", 0))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.is_open.set()
        await first
        assert await store.get_document(SID, OWNER) is None


async def test_a_call_that_is_cancelled_under_way_happens_wholly(path: Path, clocks: Clocks) -> None:
    gate = Gate(clocks)
    async with opened(path, clocks, unix_time=gate.unix_time) as store:
        first = await gate.stop(store)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.is_open.set()
        assert await store.begin(asks(SID, waits=False)) == Busy(0)
        assert await tail_in(store) == [b"1"]


async def test_the_loop_goes_on_while_the_thread_is_held_up(path: Path, clocks: Clocks) -> None:
    gate = Gate(clocks)
    async with opened(path, clocks, unix_time=gate.unix_time) as store:
        first = await gate.stop(store)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not first.done()
        gate.is_open.set()
        await first


async def test_a_closed_store_says_so(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.load(SID, OWNER, EMPTY)
        with pytest.raises(StoreUnavailable, match="closed"):
            await begun_in(store)


async def test_what_is_under_way_is_done_before_the_file_is_closed(path: Path, clocks: Clocks) -> None:
    gate = Gate(clocks)
    store = await SqliteStore.open(path, clocks.monotonic, gate.unix_time)
    stopped = await gate.stop(store)
    closing_task = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    gate.is_open.set()
    await asyncio.gather(stopped, closing_task)
    assert count(path, "entry") == 1


async def test_the_log_of_writes_is_brought_into_the_file_while_writing_goes_on(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        for n in range(300):
            await store.put_document(Sid(f"{n}"), OWNER, b"x" * 20_000, 0)
        await store.get_document(SID, OWNER)  # behind what the reading thread was asked to do
        assert len(content(path)) > 1_000_000


# Faults


async def test_a_file_that_another_holds_is_unavailable_and_then_well_again(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks, timeout_s=0.4) as store:
        begun = await begun_in(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
                await store.append(more(SID, begun, b"1"))
            assert await tail_in(store) == []
            other.execute("ROLLBACK")
        assert await store.append(more(SID, begun, b"1")) == 1


async def test_a_full_disk_is_unavailable_and_leaves_nothing_half(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        begun = await begun_in(store)
        connection = store._writer._thread.connection
        assert connection is not None
        ask = store._writer._thread.submit
        ask(lambda: connection.execute("PRAGMA max_page_count = 40").fetchone()).result()
        with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
            await store.append(more(SID, begun, *[b"x" * 3000] * 100, ends=True))
        assert await tail_in(store) == []
        ask(lambda: connection.execute("PRAGMA max_page_count = 4000").fetchone()).result()
        assert await store.append(more(SID, begun, b"1", ends=True)) == 1


async def test_a_file_that_may_not_be_written_is_unavailable(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        begun = await begun_in(store)
        connection = store._writer._thread.connection
        assert connection is not None
        store._writer._thread.submit(lambda: connection.execute("PRAGMA query_only = ON")).result()
        with pytest.raises(StoreUnavailable, match="SQLITE_READONLY"):
            await store.append(more(SID, begun, b"1"))


async def test_a_session_that_cannot_be_read_is_corrupt(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        await keep(store, SID, 2000, 0)
    with closing(sqlite3.connect(path)) as connection:
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entry'").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    async with opened(path, clocks) as store:
        with pytest.raises(Corrupt, match="SQLITE_CORRUPT"):
            await store.load(SID, OWNER, EMPTY)
        with pytest.raises(Corrupt):
            await store.begin(asks(SID))
        await store.put_document(SID, OWNER, b"well", 0)
        assert await store.get_document(SID, OWNER) == b"well"


@pytest.mark.parametrize(
    "spoil",
    [
        *(f"UPDATE session SET {column} = 'spoilt'" for column in ("head", "fence", "claimed_until", "turns")),
        "UPDATE entry SET body = 7",
        "UPDATE entry SET body = 'text'",
    ],
)
async def test_a_session_of_spoilt_values_is_corrupt_can_be_deleted_and_leaves_others_well(
    path: Path, clocks: Clocks, spoil: str
) -> None:
    async with opened(path, clocks) as store:
        await keep(store, SID, entries=2, lifetime_s=60.0)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(spoil)
        with pytest.raises(Corrupt):
            await store.load(SID, OWNER, EMPTY)
        with pytest.raises(Corrupt):
            await begun_in(store)
        assert not await store.delete(SID, STRANGER)
        assert await store.delete(SID, OWNER)
        await begun_in(store)
        await begun_in(store, Sid("other"))


async def _written(path: Path) -> bytes:
    """Of a closed store: all that its log had is in it."""
    return await asyncio.to_thread(path.read_bytes)


async def test_what_is_deleted_is_overwritten_in_its_file(path: Path, clocks: Clocks) -> None:
    words = b"my cat is called Mimi"
    async with opened(path, clocks) as store:
        assert await store.create(SID, OWNER, entries=[words * 9] * 50, attributes=b"a", turns=1, lifetime_s=60.0)
        assert await store.create(Sid("other"), OWNER, entries=[b"x"], attributes=b"a", turns=1, lifetime_s=60.0)
    assert words in await _written(path)
    async with opened(path, clocks) as store:
        assert await store.delete(SID, OWNER)
    assert words not in await _written(path)


async def test_a_session_with_a_gap_is_corrupt_and_others_are_well(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        await keep(store, SID, 3, 0)
        await keep(store, Sid("well"), 3, 0)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM entry WHERE sid = ? AND seq = 2", (SID,))
        with pytest.raises(Corrupt, match="missing"):
            await store.load(SID, OWNER, EMPTY)
        with pytest.raises(Corrupt, match="missing"):
            await store.begin(asks(SID))
        assert len(await tail_in(store, Sid("well"))) == 3
        loaded = await store.load(Sid("well"), OWNER, Cursor())
        assert loaded is not None
        assert loaded.turns == 1


# Sweeping


async def test_sweeping_deletes_what_expired_and_nothing_else(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        for lifetime_s in (5.0, 50.0, 0.0):
            sid = Sid(f"{lifetime_s}")
            begun = await begun_in(store, sid, idempotency_key="k", entries=(b"1",), turn=1)
            await store.begin(asks(sid))
            await store.commit_view(sid, OWNER, begun.generation, 0, b"v")
            await store.set_attributes(sid, OWNER, b"a")
            await store.append(more(sid, begun, ends=True, lifetime_s=lifetime_s))
            await store.put_document(sid, OWNER, b"d", lifetime_s)
        await clocks.advance(10)
        assert await store.sweep(100) == 2
        assert await store.sweep(100) == 0
        for table in (*PARTS, "session", "document"):
            assert count(path, table) == 2, table


async def test_sweeping_stops_at_its_limit_and_goes_on_from_there(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        for n in range(5):
            await keep(store, Sid(f"{n}"), 1, 5)
        await clocks.advance(10)
        assert [await store.sweep(2) for _ in range(4)] == [2, 2, 1, 0]


async def test_documents_are_swept_in_small_parts_up_to_the_limit(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        for n in range(SWEPT_DOCUMENTS + 10):
            await store.put_document(Sid(f"{n}"), OWNER, b"d", 5)
        await clocks.advance(10)
        assert [await store.sweep(limit) for limit in (SWEPT_DOCUMENTS + 5, 100, 100)] == [SWEPT_DOCUMENTS + 5, 5, 0]


async def test_a_long_session_is_swept_in_small_parts(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        await keep(store, SID, SWEPT_ENTRIES * 2 + 1, 5)
        await clocks.advance(10)
        left = []
        while await store._writer.do(rows.sweep_session, SWEPT_ENTRIES) is False:
            left.append(count(path, "entry"))
        assert left == [SWEPT_ENTRIES + 1, 1]
        assert count(path, "entry") == 0


async def test_a_long_session_is_swept_by_one_call(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        await keep(store, SID, SWEPT_ENTRIES * 2 + 1, 5)
        await clocks.advance(10)
        assert await store.sweep(1) == 1
        assert count(path, "session") == count(path, "entry") == 0


async def test_a_session_that_is_deleted_while_it_is_large_is_absent_at_once_and_gone_in_parts(
    path: Path, clocks: Clocks
) -> None:
    async with opened(path, clocks) as store:
        await keep(store, SID, SWEPT_ENTRIES * 3, 0)
        assert await store._writer.do(rows.hide, SID, OWNER)
        assert await store.load(SID, OWNER, EMPTY) is None
        assert not await store.delete(SID, OWNER)
        assert count(path, "entry") == SWEPT_ENTRIES * 3
        assert await store.sweep(10) == 1  # what a router that died did not end
        assert count(path, "entry") == count(path, "session") == 0


async def test_what_is_deleted_is_overwritten_in_the_log_of_writes_too(path: Path, clocks: Clocks) -> None:
    words = b"my cat is called Mimi"
    async with opened(path, clocks) as store:
        await store.create(SID, OWNER, entries=[words * 9] * 50, attributes=b"a", turns=1, lifetime_s=60.0)
        await store.put_document(SID, OWNER, words, 0)
        await store.tidy()
        assert await store.delete(SID, OWNER)
        assert await store.delete_document(SID, OWNER)
        await store.tidy()
        found = [file.name for file in path.parent.iterdir() if words in file.read_bytes()]
        assert found == []


async def test_a_wall_clock_that_is_put_back_brings_back_no_half_of_a_session(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        await keep(store, SID, SWEPT_ENTRIES * 2, 5)
        await clocks.advance(10)
        assert await store._writer.do(rows.sweep_session, SWEPT_ENTRIES) is False
        await clocks.advance(-10)
        assert await store.load(SID, OWNER, EMPTY) is None
        assert await store.create(SID, STRANGER, entries=(b"new",), attributes=b"", turns=0, lifetime_s=0)
        assert count(path, "entry") == 1


async def test_a_name_that_expired_can_be_taken_before_it_was_swept(path: Path, clocks: Clocks) -> None:
    async with opened(path, clocks) as store:
        old = await begun_in(store, entries=(b"old",), turn=1, lifetime_s=5)
        await clocks.advance(10)
        new = await begun_in(store, cursor=Cursor(old.generation, 1))
        assert (new.head, new.turn, new.fence > old.fence) == (0, 1, True)
        assert await store.sweep(10) == 0


@pytest.mark.parametrize("table", ["entry", "turn", "view", "attributes"])
async def test_what_may_be_large_is_not_read_by_whoever_looks_for_something_else(
    path: Path, clocks: Clocks, table: str
) -> None:
    """A row without a rowid is compared as a whole."""
    async with opened(path, clocks):
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute(f"SELECT rowid FROM {table}").fetchall() == []
