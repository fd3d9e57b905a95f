"""A connection to a SQLite file in a thread of its own: every call is a transaction, whole or not at all.

One connection writes, and another in a second thread reads, so that reading a long session delays no write. A cancelled call
is not begun, or runs to its end. A call that has not begun after ``timeout_s`` never begins, and a call that has begun gets as
long again: so a refused call has not happened, unless the disk hangs. Several processes may use one file: a transaction that
writes takes the lock of the file first, and then reads the clocks. The file must be on a local disk.
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
"""FULL: acknowledged writes outlive a power failure. NORMAL: they outlive the process; a power failure leaves the file sound,
but may take the writes of the last moments."""

OPENING_S = 10.0
"""Time to open a file, also where a call has less: after the kill of a process the file is recovered first, and other
processes may be doing that."""

PAGE_BYTES = 4096
MAX_WAL_PAGES = 8192
"""A write-ahead log of this length (32 MiB) is brought into the file by the writer, which delays a call. A shorter one is
brought by the reader, while writing goes on."""


@dataclass(frozen=True, slots=True)
class Clock:
    monotonic: Callable[[], float]
    """Counts from the boot, so it is the same for all processes of the machine."""
    unix_time: Callable[[], float]
    boot: str
    """Id of the boot: times of another boot mean nothing."""


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
        """Bytes that may still be written, on the disk and in free pages of the file; and bytes of the whole disk. Memory has
        no bound."""
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
"""A file beside the database, given up for deletions on a full disk: a deletion writes to the write-ahead log before it frees
anything. On a small disk it is smaller."""
RESERVE_SHARE, WAL_SHARE = 8, 16
"""At most an eighth of the free disk is reserve, and a sixteenth is write-ahead log, so that the log can be brought into the
file at any time."""
MIN_RESERVE_BYTES = 256 << 10
MIN_ROOM_BYTES = 128 << 10
"""On a disk with less room, an error of reading or writing means that the disk is full."""


class Database:
    """``synchronous``: None for a connection that only reads; the file must then exist."""

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

    def __repr__(self) -> str:
        return f"Database({str(self.path)!r}, synchronous={self._synchronous}, {self._thread!r})"

    @property
    def pending(self) -> int:
        """Calls that wait for the thread, and the one that it runs."""
        return self._thread.pending

    @property
    def max_pending(self) -> int:
        return self._thread.max_pending

    @classmethod
    async def open(
        cls, path: Path, clock: Clock, synchronous: Synchronous | None, *, max_pending: int, timeout_s: float
    ) -> Self:
        """Succeeds on a disk without room: then each call tries to open the file, until there is room."""
        database = cls(path, clock, synchronous, max_pending, timeout_s)
        try:
            await database._run(database._require_connection)
        except Full as error:
            log.warning(
                "the disk of the session store is full: free some of it, and the store opens", extra={"why": str(error)}
            )
        except BaseException:
            await database.close()
            raise
        finally:
            database._timeout_s = timeout_s
        return database

    async def do(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises StoreUnavailable, Corrupt, and what ``work`` raises. A call that raises has changed nothing."""
        return await self._run(self._transact, lambda at: work(at, *args, **kwargs))

    async def overwrite(self) -> None:
        """Removes deleted data from the write-ahead log, by bringing the log into the file and cutting it to nothing. Raises
        StoreUnavailable and Corrupt."""
        await self._run(self._truncate)

    async def fit_to_disk(self) -> None:
        """Sizes the reserve and the write-ahead log by the free disk. Raises StoreUnavailable and Corrupt."""
        await self._run(self._fit_to_disk)

    async def spend_reserve(self) -> None:
        """Frees the reserve for a deletion on a full disk."""
        await self._run(self._spend_reserve)

    def checkpoint(self) -> None:
        """Brings the write-ahead log into the file soon, in this thread. A failure is left to the next checkpoint, and to the
        writer once the log is long."""
        if self._checkpointing.done():
            with suppress(RuntimeError):
                self._checkpointing = self._thread.submit(self._checkpoint)

    async def close(self) -> None:
        """Earlier calls are done first. Closing again does nothing."""
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
        # A full disk shows in several ways: when the write-ahead log grows, when the file grows, when either is created.
        is_full = code == sqlite3.SQLITE_FULL or (
            code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and self._free_bytes() < MIN_ROOM_BYTES
        )
        return Full(told) if is_full else StoreUnavailable(told)

    def _free_bytes(self) -> int:
        """Free bytes of the disk."""
        with suppress(OSError):
            disk = os.statvfs(self.path.parent)
            return disk.f_bavail * disk.f_frsize
        return UNBOUNDED_BYTES

    # The methods below run in the thread.

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
        if self.path != IN_MEMORY and not self.path.exists():  # SQLite would create it, readable for everybody
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
