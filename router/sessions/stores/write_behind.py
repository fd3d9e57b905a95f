"""Keeps ends of turns on disk that the store did not take, until it takes them: an answer that a client received is never lost.

The journal is lines of JSON with a checksum in the state directory, flushed to the disk before the turn ends. When the store
answers again, they are appended in order as late ends, which changes nothing if done twice. Then the file is cut to nothing. A
session with lines in the journal begins no turn in this process before the store has them.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from router.core.request.request import Tenant
from router.sessions.stores.contract import (
    Append,
    Begin,
    Begun,
    Busy,
    Corrupt,
    Cursor,
    Fenced,
    Loaded,
    Repeated,
    Sid,
    Store,
    StoreUnavailable,
    TurnRecord,
)

log = logging.getLogger("warmroute.sessions")

T = TypeVar("T")

MAX_ROUTERS = 64
"""Routers that may share a directory."""

SETTLING_S = 0.04
"""Together with a call of the default ``sessions.timeout_s``, a client gets an answer within a quarter of a second."""

UNKNOWN_HEAD = -1
"""Returned by ``append`` where the length of the log is unknown."""


class Late(Append, frozen=True, kw_only=True):
    """The end of a turn that the store has not taken yet. ``since``: Unix time, since another router may read it."""

    since: float


class Journal:
    """Files ``journal-N`` in a directory. Each router locks the first that is free, so a new router takes over the file of a
    dead one. A journal has at most ``max_bytes``. All calls run in one thread."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.bytes = 0
        self._files: list[int] = []

    def __repr__(self) -> str:
        return f"Journal({str(self.directory)!r}, bytes={self.bytes}, files={len(self._files)})"

    def open(self) -> list[Late]:
        """Returns what is left, also in files of dead routers. An incomplete line was never acknowledged. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = len(list(self.directory.glob("journal-*")))
        kept = []
        for number in range(found + MAX_ROUTERS):
            if (number >= found and self._files) or (file := self._lock(number)) is None:
                continue
            self._files.append(file)
            kept += self._read(file)
        if not self._files:
            raise OSError(errno.EAGAIN, "all journals are in use by other routers")
        return kept

    def _lock(self, number: int) -> int | None:
        """None: another router has locked it."""
        path = self.directory / f"journal-{number}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def _read(self, file: int) -> list[Late]:
        data = os.pread(file, os.fstat(file).st_size, 0)
        *lines, torn = data.split(b"\n")
        if torn:
            os.ftruncate(file, len(data) - len(torn))  # the next line must begin on its own
        self.bytes += len(data) - len(torn)
        found = [_decode(line) for line in lines]
        kept = [late for late in found if late is not None]
        if torn or len(kept) < len(found):
            lost = {"torn": bool(torn), "unreadable": len(found) - len(kept)}
            log.warning("lines of the journal cannot be read", extra={"directory": str(self.directory), **lost})
        return kept

    def write(self, late: Late) -> None:
        """The line is on the disk when the call returns. Raises StoreUnavailable."""
        body = msgspec.json.encode(late)
        line = b"%d %b\n" % (zlib.crc32(body), body)
        if self.bytes + len(line) > self.max_bytes:
            raise StoreUnavailable("the journal is full")
        file = self._files[0]
        before = os.fstat(file).st_size
        try:
            _write_whole(file, line)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, before)  # it was not acknowledged, and the next line must begin on its own
            raise StoreUnavailable(f"the journal cannot be written: {error.strerror}") from None
        self.bytes += len(line)

    def clear(self) -> None:
        for file in self._files:
            os.ftruncate(file, 0)
            os.fsync(file)
        self.bytes = 0

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())


def _write_whole(file: int, line: bytes) -> None:
    """Raises OSError."""
    if os.write(file, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file)


def _decode(line: bytes) -> Late | None:
    """None: the line is damaged."""
    checksum, _, body = line.partition(b" ")
    if not checksum.isdigit() or int(checksum) != zlib.crc32(body):
        return None
    try:
        return msgspec.json.decode(body, type=Late)
    except msgspec.DecodeError:
        return None


class JournaledStore:
    """Satisfies Store. All calls go to another store; ends of turns that it does not take go to the journal. ``run`` must be
    running.

    ``retry_s``: between two attempts to bring the journal to the store. ``patience_s``: time that a turn or a reader of a
    session waits for its ends of turns to reach the store; after it the call raises StoreUnavailable. ``wall_clock``: Unix
    time.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        wall_clock: Callable[[], float],
        *,
        retry_s: float = 0.25,
        patience_s: float = SETTLING_S,
    ) -> None:
        self._store = store
        self.journal = journal
        self._wall_clock = wall_clock
        self._retry_s = retry_s
        self._patience_s = patience_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._waiting: dict[Sid, list[Late]] = {}
        self._wake = asyncio.Event()
        self._replaying = asyncio.Lock()
        self.ping = store.ping
        self.renew = store.renew
        self.release = store.release
        self.leave = store.leave
        self.create = store.create
        self.set_attributes = store.set_attributes
        self.commit_view = store.commit_view
        self.delete = store.delete
        self.put_document = store.put_document
        self.get_document = store.get_document
        self.delete_document = store.delete_document

    @property
    def waiting(self) -> int:
        """Number of ends of turns that the store has not taken."""
        return sum(map(len, self._waiting.values()))

    @property
    def lag_s(self) -> float:
        """Time for which the oldest end of a turn has waited; 0: none waits."""
        now = self._wall_clock()
        since = min((late.since for ends in self._waiting.values() for late in ends), default=now)
        return max(0.0, now - since)

    async def open(self) -> None:
        """Raises OSError."""
        for late in await self._in_thread(self.journal.open):
            self._waiting.setdefault(late.sid, []).append(late)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            await self._replay_all()
            if self._waiting:
                await asyncio.sleep(self._retry_s)

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        if begin.sid in self._waiting:
            await self._settle(begin.sid)
        return await self._store.begin(begin)

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None:
        if sid in self._waiting:
            await self._settle(sid)
        return await self._store.load(sid, owner, cursor)

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None:
        if sid in self._waiting:
            await self._settle(sid)
        return await self._store.read_turn(sid, owner, turn)

    async def append(self, append: Append) -> int:
        try:
            return await self._store.append(append)
        except StoreUnavailable:
            if not append.ends:
                raise
        late = Late(**(msgspec.structs.asdict(append) | {"is_late": True}), since=self._wall_clock())
        waiting = self._waiting.setdefault(append.sid, [])
        waiting.append(late)  # before the write: the file may be cleared while nothing waits
        try:
            await self._in_thread(self.journal.write, late)
        except StoreUnavailable:
            if late in waiting:
                waiting.remove(late)
            raise
        finally:
            self._wake.set()
        return UNKNOWN_HEAD

    async def close(self) -> None:
        await self._in_thread(self.journal.close)
        self._thread.shutdown(wait=False)
        await self._store.close()

    async def _replay_all(self) -> None:
        async with self._replaying:
            try:
                for sid in tuple(self._waiting):
                    await self._replay(sid)
            except StoreUnavailable:
                return
            if not self._waiting:
                await self._in_thread(self.journal.clear)
                self._wake.clear()

    async def _settle(self, sid: Sid) -> None:
        """Brings acknowledged ends to the store before the session is read. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self._patience_s), self._replaying:
                await self._replay(sid)
        except TimeoutError:
            raise StoreUnavailable("ends of earlier turns wait to be stored") from None

    async def _replay(self, sid: Sid) -> None:
        """Raises StoreUnavailable. Drops an end that the store refuses for good, since the session was deleted."""
        waiting = self._waiting.get(sid, [])
        while waiting:
            late = waiting[0]
            try:
                await self._store.append(late)
            except (Fenced, Corrupt) as error:
                log.warning("the end of a turn was dropped", extra={"sid": sid, "why": repr(error)})
            if waiting and waiting[0] is late:  # ``append`` removes an end that the journal did not take
                del waiting[0]
        self._waiting.pop(sid, None)

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
