"""A connection to a SQLite file and the thread that it lives in: every call is a transaction, whole or not at all.

The thread never holds the event loop. One connection writes, and another in a second thread reads, so that who reads a long
session holds up nobody. A call that is cancelled is not begun or runs to its end; half of it is never there. One that has not
begun after ``timeout_s`` never does, and one that has is waited for as long again: so what is refused has not happened, unless
the disk hangs. Other processes may use the same file: a transaction that writes takes the file's lock first,
and only then reads the clocks. The file must be on a local disk.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, Self, TypeVar

from router.runtime.sqlite_thread import IN_MEMORY, NotBegun, SqliteThread, begin_wal, create_private
from router.sessions.stores.contract import Corrupt, Full, StoreUnavailable
from router.sessions.stores.sqlite.schema import check_version, migrate

log = logging.getLogger("warmroute.sessions")

P = ParamSpec("P")
T = TypeVar("T")

Synchronous = Literal["NORMAL", "FULL"]
"""FULL: what was acknowledged outlives a power failure. NORMAL: it outlives the process, and a power failure leaves the file
sound but may take the last moments."""

OPENING_S = 10.0
"""How long a file may take to be opened, whatever a call may: one whose last process was killed is recovered first, and
others may be at it."""

PAGE_BYTES = 4096
MAX_WAL_PAGES = 8192
"""From this length of the write-ahead log on (32 MiB) the writer itself brings it into the file, which costs a call the
time of the disk. Before that the reader does, while writing goes on."""


@dataclass(frozen=True, slots=True)
class Clock:
    monotonic: Callable[[], float]
    """Of this boot, and so the same for all processes of the machine."""
    unix_time: Callable[[], float]
    boot: str
    """Times of another boot mean nothing."""


@dataclass(frozen=True, slots=True)
class Transaction:
    connection: sqlite3.Connection
    now: float
    """Monotonic; for leases and the line."""
    unix_time: float
    """For lifetimes."""
    boot: str
    path: Path

    def disk(self) -> tuple[int, int]:
        """Bytes that may still be written, with what is free in the file; and of the whole disk. Memory has no bound."""
        if self.path == IN_MEMORY:
            return UNBOUNDED_BYTES, UNBOUNDED_BYTES
        free_pages, page_bytes = (self.connection.execute(f"PRAGMA {of}").fetchone()[0] for of in FREE_PAGES)
        disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize + free_pages * page_bytes, disk.f_blocks * disk.f_frsize


FREE_PAGES = ("freelist_count", "page_size")
UNBOUNDED_BYTES = 1 << 62


class _Spared(StoreUnavailable):
    was_asked = False


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
RESERVE_BYTES = 40 << 20
"""Kept beside the file for deletions: on a full disk they, too, must first write what they change, behind all that the
write-ahead log has. Of a small disk it is a part."""
RESERVE_SHARE, WAL_SHARE = 8, 16
"""Of what is free of the disk, at most an eighth is reserve, and a sixteenth is in the write-ahead log, so that the log can be
brought into the file at any time."""
MIN_RESERVE_BYTES = 256 << 10
MIN_ROOM_BYTES = 128 << 10
"""Of a disk that has less, an error of reading or writing means that it is full."""


class Database:
    """``synchronous``: of a connection that writes; None for one that only reads, for which the file must be there."""

    def __init__(
        self, path: Path, clock: Clock, synchronous: Synchronous | None, max_pending: int, timeout_s: float
    ) -> None:
        self.path = path
        self._reserve = path.with_name(path.name + "-reserve")
        self._synchronous = synchronous
        self._timeout_s = max(timeout_s, OPENING_S)
        self._call_timeout_s = timeout_s
        self._clock = clock
        self._thread = SqliteThread("sessions", max_pending)
        self._begin = "BEGIN"
        self._checkpointing: Future[None] = Future()
        self._checkpointing.set_result(None)

    @property
    def pending(self) -> int:
        """Calls that wait for the thread, and the one that it is at."""
        return self._thread.pending

    @property
    def max_pending(self) -> int:
        return self._thread.max_pending

    @classmethod
    async def open(
        cls, path: Path, clock: Clock, synchronous: Synchronous | None, *, max_pending: int, timeout_s: float
    ) -> Self:
        """A disk without room is no reason not to open it: each call tries to, until there is."""
        database = cls(path, clock, synchronous, max_pending, timeout_s)
        try:
            await database._run(database._require_connection)
        except Full as error:
            log.warning("the session store has no room, and opens when there is", extra={"why": str(error)})
        except BaseException:
            await database.close()
            raise
        finally:
            database._timeout_s = timeout_s
        return database

    async def do(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises StoreUnavailable, Corrupt, and what ``work`` raises, which then has changed nothing."""
        return await self._run(self._transact, lambda at: work(at, *args, **kwargs))

    async def overwrite(self) -> None:
        """What was deleted, in the write-ahead log as well: it is brought into the file, and cut to nothing. Raises as
        ``do``."""
        await self._run(self._truncate)

    async def fit_to_disk(self) -> None:
        """The reserve and the bound of the write-ahead log, as the disk has room for them now. Raises as ``do``."""
        await self._run(self._fit_to_disk)

    async def spend_reserve(self) -> None:
        """For a deletion on a full disk."""
        await self._run(self._spend_reserve)

    def checkpoint(self) -> None:
        """Soon, and in this thread, bring what the write-ahead log has gathered into the file. What fails is tried again by
        the next, and by the writer once the log is long."""
        if self._checkpointing.done():
            with suppress(RuntimeError):
                self._checkpointing = self._thread.submit(self._checkpoint)

    async def close(self) -> None:
        """What was asked before is done first. Closing again does nothing."""
        await self._thread.close()

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._thread.run_within(self._timeout_s, self._clock.monotonic, partial(work, *args, **kwargs))
        except NotBegun as error:
            raise _Spared(f"{self.path}: {error}") from error
        except TimeoutError as error:
            raise StoreUnavailable(f"{self.path}: no answer within {2 * self._timeout_s} s") from error
        except sqlite3.Error as error:
            raise self._translate(error) from error
        except OSError as error:
            kind = Full if error.errno in _NO_ROOM else StoreUnavailable
            raise kind(f"{self.path}: {error.strerror}") from error

    def _translate(self, error: sqlite3.Error) -> StoreUnavailable | Corrupt:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        told = f"{self.path}: {getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"
        if code == sqlite3.SQLITE_CORRUPT:
            return Corrupt(told)
        # A disk without room is told in several ways: where the log of writes grows, where the file does, where they begin.
        is_full = code == sqlite3.SQLITE_FULL or (
            code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and self._free_bytes() < MIN_ROOM_BYTES
        )
        return Full(told) if is_full else StoreUnavailable(told)

    def _free_bytes(self) -> int:
        """Of the disk."""
        with suppress(OSError):
            disk = os.statvfs(self.path.parent)
            return disk.f_bavail * disk.f_frsize
        return UNBOUNDED_BYTES

    # From here on in the thread.

    def _require_connection(self) -> None:
        if self._thread.connection is not None:
            return
        try:
            if self._synchronous:
                self._connect_writer(self._synchronous)
            else:
                self._connect().execute("PRAGMA query_only = ON")
            self._thread.require_connection().execute(f"PRAGMA busy_timeout = {round(self._call_timeout_s * 500)}")
        except BaseException:
            self._thread.disconnect()
            raise

    def _connect(self) -> sqlite3.Connection:
        if self.path != IN_MEMORY and not self.path.exists():  # else it would be made, for all to read
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._thread.connection = sqlite3.connect(self.path, timeout=self._timeout_s / 2, isolation_level=None)
        return self._thread.connection

    def _connect_writer(self, synchronous: Synchronous) -> None:
        create_private(self.path)
        connection = self._connect()
        check_version(connection)
        if not begin_wal(connection, synchronous):
            raise StoreUnavailable(f"{self.path}: its file system cannot hold a write-ahead log")
        self._bound_wal(connection)
        migrate(connection)
        self._begin = "BEGIN IMMEDIATE"

    def _checkpoint(self) -> None:
        if self._thread.connection is not None:
            self._thread.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _truncate(self) -> None:
        self._require_connection()
        self._thread.truncate_wal()

    def _bound_wal(self, connection: sqlite3.Connection) -> None:
        pages = max(1, min(MAX_WAL_PAGES, self._free_bytes() // WAL_SHARE // PAGE_BYTES))
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")

    def _fit_to_disk(self) -> None:
        self._require_connection()
        if self.path == IN_MEMORY:
            return
        self._bound_wal(self._thread.require_connection())
        create_private(self._reserve)
        file = os.open(self._reserve, os.O_WRONLY)
        try:
            has_bytes = os.fstat(file).st_size
            wanted_bytes = min(RESERVE_BYTES, (self._free_bytes() + has_bytes) // RESERVE_SHARE)
            if wanted_bytes > max(MIN_RESERVE_BYTES, 2 * has_bytes):
                os.posix_fallocate(file, 0, wanted_bytes)
        finally:
            os.close(file)

    def _spend_reserve(self) -> None:
        self._reserve.unlink(missing_ok=True)

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        self._require_connection()
        clock = self._clock
        return self._thread.transact(
            self._begin,
            lambda connection: work(
                Transaction(connection, clock.monotonic(), clock.unix_time(), clock.boot, self.path)
            ),
        )
