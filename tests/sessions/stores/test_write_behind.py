"""Ends of turns that a store does not take are on disk before they are acknowledged, and once in the store when it is back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from router.sessions.stores.contract import EMPTY, Append, Begun, Corrupt, Sid, StoreUnavailable
from router.sessions.stores.write_behind import UNKNOWN_HEAD, Journal, JournaledStore, Late
from tests.sessions.desk import PointedStore, Points
from tests.sessions.stores.contract import OWNER, asks, more

SID, OTHER = Sid("a" * 32), Sid("b" * 32)
ROOM = 1 << 20


def an_end(turn: int = 1, *entries: bytes) -> Late:
    begun = Begun(
        generation="g",
        fence=7,
        turn=turn,
        head=0,
        epoch=0,
        view=None,
        starts_over=False,
        tail=(),
        appended=False,
        worker="",
    )
    entries = entries or (b"answer %d \xff\n" % turn,)
    return late(more(SID, begun, *entries, ends=True, is_late=True, record=b"r"), since=100.0 * turn)


def late(append: Append, since: float = 0.0) -> Late:
    return Late(**msgspec.structs.asdict(append), since=since)


def written(directory: Path, *ends: Late) -> Path:
    """The journal of a router that died behind these."""
    journal = Journal(directory, ROOM)
    journal.open()
    for late in ends:
        journal.write(late)
    journal.close()
    return directory / "journal-0"


def read(directory: Path) -> list[Late]:
    journal = Journal(directory, ROOM)
    try:
        return [as_told(late) for late in journal.open()]
    finally:
        journal.close()


def as_told(late: Late) -> Late:
    """What was a tuple is a list when it was read."""
    return msgspec.structs.replace(late, entries=tuple(late.entries))


# The file


def test_what_was_written_is_read_again_in_its_order(tmp_path: Path) -> None:
    written(tmp_path, an_end(1), an_end(2, b"", bytes(range(256))))
    assert read(tmp_path) == [an_end(1), an_end(2, b"", bytes(range(256)))]
    assert read(tmp_path) == [an_end(1), an_end(2, b"", bytes(range(256)))], "reading takes nothing away"


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "state" / "dir", an_end())
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_last_line_that_is_torn_is_left_out_wherever_it_was_torn(tmp_path: Path) -> None:
    path = written(tmp_path, an_end(1), an_end(2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert read(tmp_path) == [an_end(1)]


def test_what_is_written_behind_a_torn_line_is_not_part_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, an_end(1), an_end(2))
    path.write_bytes(path.read_bytes()[:-9])
    written(tmp_path, an_end(3))
    assert read(tmp_path) == [an_end(1), an_end(3)]


@pytest.mark.parametrize("spoiled", [b"no checksum", b"123 {}", b"", b"\xff\xfe", b"2745614147 {}"])
def test_a_line_that_cannot_be_read_takes_no_other_along(tmp_path: Path, spoiled: bytes) -> None:
    path = written(tmp_path, an_end(1), an_end(2), an_end(3))
    first, _, last, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join((first, spoiled, last, b"")))
    assert read(tmp_path) == [an_end(1), an_end(3)]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, an_end(1), an_end(2))
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    assert read(tmp_path) == [an_end(2)]


def test_a_journal_that_is_full_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    size = written(tmp_path / "one", an_end(1)).stat().st_size
    journal = Journal(tmp_path / "two", size + 9)  # no two checksums need be of one length
    journal.open()
    journal.write(an_end(1))
    with pytest.raises(StoreUnavailable):
        journal.write(an_end(2))
    assert journal.bytes == size
    journal.clear()
    journal.write(an_end(3))
    journal.close()
    assert read(tmp_path / "two") == [an_end(3)]


def test_what_was_left_counts_toward_what_the_journal_may_hold(tmp_path: Path) -> None:
    size = written(tmp_path, an_end(1)).stat().st_size
    journal = Journal(tmp_path, 2 * size - 1)
    journal.open()
    assert journal.bytes == size
    with pytest.raises(StoreUnavailable):
        journal.write(an_end(2))
    journal.close()


def test_a_disk_that_takes_half_a_line_has_taken_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    journal = Journal(tmp_path, ROOM)
    journal.open()
    journal.write(an_end(1))
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    with pytest.raises(StoreUnavailable):
        journal.write(an_end(2))
    monkeypatch.undo()
    journal.write(an_end(3))
    journal.close()
    assert read(tmp_path) == [an_end(1), an_end(3)]


def test_a_line_that_could_not_be_flushed_is_refused_and_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    journal = Journal(tmp_path, ROOM)
    journal.open()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        journal.write(an_end(1))
    monkeypatch.undo()
    journal.close()
    assert read(tmp_path) == []


def test_two_routers_in_one_directory_have_files_of_their_own(tmp_path: Path) -> None:
    one, two = Journal(tmp_path, ROOM), Journal(tmp_path, ROOM)
    assert (one.open(), two.open()) == ([], [])
    one.write(an_end(1))
    two.write(an_end(2))
    one.clear()
    assert (one.bytes, two.bytes > 0) == (0, True)
    one.close()
    two.close()
    assert read(tmp_path) == [an_end(2)]


def test_a_router_takes_over_the_files_of_all_that_are_dead_and_none_of_one_that_lives(tmp_path: Path) -> None:
    journals = [Journal(tmp_path, ROOM) for _ in range(3)]
    for number, journal in enumerate(journals, 1):
        journal.open()
        journal.write(an_end(number))
    journals[0].close()
    journals[2].close()
    heir = Journal(tmp_path, ROOM)
    assert [as_told(late) for late in heir.open()] == [an_end(1), an_end(3)]
    heir.clear()
    heir.close()
    journals[1].close()
    assert read(tmp_path) == [an_end(2)]


# The store before it


class Desk:
    """A store that fails on demand, and a journaled one before it that has begun a turn of two sessions."""

    def __init__(self, directory: Path, max_bytes: int = ROOM) -> None:
        self.points = Points()
        self.inner = PointedStore(self.points, lambda: 1.0)
        self.journal = Journal(directory, max_bytes)
        self.now = 1000.0
        self.store = JournaledStore(self.inner, self.journal, lambda: self.now, retry_s=0.001)
        self.begun: dict[Sid, Begun] = {}

    async def begin(self, sid: Sid) -> Begun:
        begun = await self.store.begin(asks(sid))
        assert isinstance(begun, Begun)
        self.begun[sid] = begun
        return begun

    async def end(self, sid: Sid, *entries: bytes) -> int:
        return await self.store.append(more(sid, self.begun[sid], *entries, ends=True))

    def fail(self, times: int = 1 << 30) -> None:
        for name in ("begin", "append", "end", "load"):
            self.inner.fails[f"before {name}"] = times

    def mend(self) -> None:
        self.inner.fails.clear()

    async def log(self, sid: Sid) -> list[bytes]:
        found = await self.inner.load(sid, OWNER, EMPTY)
        return list(found.tail) if found else []

    async def is_calm(self) -> None:
        """Nothing waits, and the file is empty."""
        async with asyncio.timeout(10):
            while self.store.waiting or self.journal.bytes or self.store._wake.is_set():
                await asyncio.sleep(0)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.store.open()
    for sid in (SID, OTHER):
        await desk.begin(sid)
    yield desk
    await desk.store.close()


@asynccontextmanager
async def replaying(desk: Desk) -> AsyncIterator[None]:
    task = asyncio.create_task(desk.store.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_an_end_that_the_store_takes_is_not_written_to_disk(desk: Desk) -> None:
    assert await desk.end(SID, b"1") == 1
    assert (desk.store.waiting, desk.journal.bytes) == (0, 0)


async def test_an_end_that_the_store_does_not_take_is_on_disk_when_it_is_acknowledged(
    desk: Desk, tmp_path: Path
) -> None:
    desk.fail()
    assert await desk.end(SID, b"1") == UNKNOWN_HEAD
    assert (desk.store.waiting, desk.journal.bytes) == (1, (tmp_path / "journal-0").stat().st_size)
    assert b"MQ==" in (tmp_path / "journal-0").read_bytes()


async def test_what_is_no_end_is_not_for_the_journal(desk: Desk) -> None:
    desk.fail()
    with pytest.raises(StoreUnavailable):
        await desk.store.append(more(SID, desk.begun[SID], b"1"))
    assert (desk.store.waiting, desk.journal.bytes) == (0, 0)


async def test_ends_are_in_the_store_soon_after_it_is_back_and_the_file_is_empty(desk: Desk) -> None:
    async with replaying(desk):
        desk.fail()
        for sid in (SID, OTHER):
            await desk.end(sid, sid[:1].encode())
        desk.mend()
        await desk.is_calm()
    assert (await desk.log(SID), await desk.log(OTHER)) == ([b"a"], [b"b"])


async def test_how_long_the_oldest_end_waits_is_known_until_the_store_has_it(desk: Desk) -> None:
    assert desk.store.lag_s == 0
    desk.fail()
    await desk.end(SID, b"1")
    desk.now += 30
    await desk.end(OTHER, b"1")
    desk.now += 10
    assert desk.store.lag_s == 40
    desk.mend()
    await desk.begin(SID)
    assert desk.store.lag_s == 10
    async with replaying(desk):
        await desk.is_calm()
    assert desk.store.lag_s == 0


async def test_what_a_dead_router_left_has_waited_since_that_one_wrote_it(tmp_path: Path) -> None:
    written(tmp_path, an_end(3), an_end(2))
    desk = Desk(tmp_path)
    await desk.store.open()
    assert desk.store.lag_s == desk.now - 200
    await desk.store.close()


async def test_an_end_that_was_stored_though_nobody_heard_is_stored_once(desk: Desk) -> None:
    async with replaying(desk):
        desk.inner.fails["behind end"] = 2
        assert await desk.end(SID, b"1") == UNKNOWN_HEAD
        await desk.is_calm()
    assert await desk.log(SID) == [b"1"]
    assert desk.points.passed.count("before end") == 3


async def test_a_session_begins_no_turn_before_the_store_has_its_last_one(desk: Desk) -> None:
    desk.fail()
    await desk.end(SID, b"1")
    with pytest.raises(StoreUnavailable):
        await desk.store.begin(asks(SID))
    assert "before begin" not in desk.points.passed[-1:]
    desk.mend()
    assert list((await desk.begin(SID)).tail) == [b"1"]
    assert desk.store.waiting == 0


async def test_who_reads_sees_what_was_acknowledged(desk: Desk) -> None:
    desk.fail()
    await desk.end(SID, b"1")
    desk.mend()
    loaded = await desk.store.load(SID, OWNER, EMPTY)
    assert loaded is not None
    assert list(loaded.tail) == [b"1"]
    desk.fail(1)
    await desk.end(OTHER, b"1")
    desk.mend()
    turn = await desk.store.read_turn(OTHER, OWNER, 1)
    assert turn is not None
    assert turn.has_ended


async def test_who_begins_while_the_store_hangs_is_soon_told(desk: Desk) -> None:
    desk.fail()
    await desk.end(SID, b"1")
    desk.mend()
    desk.points.held["before end"] = asyncio.Event()
    desk.points.reached.clear()
    async with replaying(desk):
        await desk.points.reached.wait()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(desk.store.begin(asks(SID)) for _ in range(20)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert "before begin" not in desk.points.passed[desk.points.passed.index("before end") :]
        desk.points.held.pop("before end").set()
        await desk.is_calm()
    assert await desk.log(SID) == [b"1"]


async def test_a_full_journal_is_told_to_the_client_and_nothing_is_stored_later(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_bytes=10)
    await desk.store.open()
    await desk.begin(SID)
    async with replaying(desk):
        desk.fail()
        with pytest.raises(StoreUnavailable, match="full"):
            await desk.end(SID, b"1")
        desk.mend()
        await desk.is_calm()
    assert await desk.log(SID) == []
    assert await desk.end(SID, b"1") == 1
    await desk.store.close()


async def test_an_end_that_could_not_be_written_while_it_was_handed_over_takes_no_other_along(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has the first one at last, when the disk says that it does not."""
    release = asyncio.Event()
    in_thread = desk.store._in_thread

    async def fail_late(call: object, *arguments: object) -> object:
        if call == desk.journal.write:
            await release.wait()
            raise StoreUnavailable("the disk is full")
        return await in_thread(call, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(desk.store, "_in_thread", fail_late)
    desk.fail()
    ending = asyncio.create_task(desk.end(SID, b"1"))
    while not desk.store.waiting:
        await asyncio.sleep(0)
    desk.mend()
    desk.points.held["behind end"] = asyncio.Event()
    desk.points.reached.clear()
    settling = asyncio.create_task(desk.store._replay(SID))
    await desk.points.reached.wait()
    release.set()
    with pytest.raises(StoreUnavailable, match="disk"):
        await ending
    monkeypatch.undo()
    desk.points.held.pop("behind end").set()
    await settling
    assert (desk.store.waiting, await desk.log(SID)) == (0, [b"1"])


async def test_the_file_is_cleared_only_when_nothing_waits(desk: Desk, tmp_path: Path) -> None:
    desk.fail()
    for sid in (SID, OTHER):
        await desk.end(sid, sid[:1].encode())
    size = desk.journal.bytes
    desk.mend()
    await desk.begin(SID)
    assert (desk.store.waiting, desk.journal.bytes) == (1, size)
    assert (tmp_path / "journal-0").stat().st_size == size


async def test_an_end_that_comes_while_the_file_is_cleared_is_kept(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which the two reach the file: the end is behind it."""
    desk.fail()
    await desk.end(SID, b"1")
    desk.mend()
    clears = asyncio.Event()
    in_thread = desk.store._in_thread

    async def note(call: object, *arguments: object) -> object:
        answer: asyncio.Future[object] = asyncio.ensure_future(in_thread(call, *arguments))  # type: ignore[arg-type]
        if call == desk.journal.clear:
            await asyncio.sleep(0)  # it is with the thread
            clears.set()
        return await answer

    monkeypatch.setattr(desk.store, "_in_thread", note)
    replay = asyncio.create_task(desk.store._replay_all())
    await clears.wait()
    desk.fail()
    await desk.end(OTHER, b"2")
    await replay
    assert (desk.store.waiting, desk.journal.bytes > 0, desk.store._wake.is_set()) == (1, True, True)
    assert b"Mg==" in (tmp_path / "journal-0").read_bytes()


async def test_a_dead_routers_ends_are_stored_by_the_next_and_twice_is_once(desk: Desk, tmp_path: Path) -> None:
    await desk.store.append(more(SID, desk.begun[SID], b"1", ends=True))
    second = await desk.begin(SID)
    written(tmp_path / "dead", late(more(SID, second, b"2", ends=True, is_late=True)))
    heir = JournaledStore(desk.inner, Journal(tmp_path / "dead", ROOM), lambda: 0.0, retry_s=0.001)
    await heir.open()
    assert heir.waiting == 1
    await heir._replay_all()
    again = JournaledStore(desk.inner, Journal(tmp_path / "again", ROOM), lambda: 0.0, retry_s=0.001)
    written(tmp_path / "again", late(more(SID, second, b"2", ends=True, is_late=True)))
    await again.open()
    await again._replay_all()
    assert (heir.waiting, heir.journal.bytes, again.waiting, again.journal.bytes) == (0, 0, 0, 0)
    assert await desk.log(SID) == [b"1", b"2"]
    for store in (heir, again):
        store.journal.close()
        store._thread.shutdown()


async def test_ends_of_one_session_are_stored_in_their_order(desk: Desk, tmp_path: Path) -> None:
    first = desk.begun[SID]
    await desk.inner.release(SID, OWNER, first.fence)
    second = await desk.begin(SID)
    desk.fail()
    for begun in (first, second):
        await desk.store.append(more(SID, begun, b"%d" % begun.turn, ends=True))
    assert [append.turn for append in map(as_told, Journal(tmp_path, ROOM)._read(desk.journal._files[0]))] == [1, 2]
    desk.mend()
    await desk.store._replay_all()
    assert await desk.log(SID) == [b"1", b"2"]


async def test_the_end_of_a_session_that_was_deleted_holds_up_nobody(desk: Desk) -> None:
    desk.fail()
    for sid in (SID, OTHER):
        await desk.end(sid, b"1")
    desk.mend()
    await desk.inner.delete(SID, OWNER)
    await desk.store._replay_all()
    assert (desk.store.waiting, desk.journal.bytes) == (0, 0)
    assert (await desk.log(SID), await desk.log(OTHER)) == ([], [b"1"])


async def test_a_corrupt_session_holds_up_nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.fail()
    for sid in (SID, OTHER):
        await desk.end(sid, b"1")
    desk.mend()
    append = desk.inner.append

    async def fail_one(asked: Append) -> int:
        if asked.sid == SID:
            raise Corrupt("as the test wished")
        return await append(asked)

    monkeypatch.setattr(desk.inner, "append", fail_one)
    await desk.store._replay_all()
    assert (desk.store.waiting, await desk.log(OTHER)) == (0, [b"1"])
