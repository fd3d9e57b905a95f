"""A connection to a SQLite file and the thread that it lives in: every call is a transaction, whole or not at all.

The thread never holds the event loop. One connection writes, and another in a second thread reads, so that who reads a long
session holds up nobody. A call that is cancelled, or given up after ``timeout_s``, is not begun or runs to its
end; half of it is never there. Other processes may use the same file: a transaction that writes takes the file's lock first,
and only then reads the clocks. The file must be on a local disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, Self, TypeVar

from router.sessions.sqlite.schema import check_version, migrate
from router.sessions.store import Corrupt, StoreUnavailable
from router.sqlite_thread import MAX_WAL_BYTES, NotBegun, SqliteThread, create_private

P = ParamSpec("P")
T = TypeVar("T")

Synchronous = Literal["NORMAL", "FULL"]
"""FULL: what was acknowledged outlives a power failure. NORMAL: it outlives the process, and a power failure leaves the file
sound but may take the last moments."""

WAL_TRIES, WAL_PAUSE_S = 50, 0.02
OPENING_S = 10.0
"""How long a file may take to be opened, whatever a call may: one whose last process was killed is recovered first, and
others may be at it."""

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


def _begin_wal(connection: sqlite3.Connection) -> str:
    """The journal's mode from now on. SQLite waits for no lock here, so that several who open a new file at once would refuse
    each other. Raises sqlite3.Error."""
    for _ in range(WAL_TRIES):
        with suppress(sqlite3.OperationalError):
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        time.sleep(WAL_PAUSE_S)
    return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])


class _Spared(StoreUnavailable):
    was_asked = False


class Database:
    def __init__(self, path: Path, clock: Clock, max_pending: int, timeout_s: float) -> None:
        self.path = path
        self._timeout_s = max(timeout_s, OPENING_S)
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
        """``synchronous``: None for a connection that only reads, for which the file must be there."""
        database = cls(path, clock, max_pending, timeout_s)
        try:
            if synchronous:
                await database._run(database._connect_writer, synchronous)
            else:
                await database._run(database._connect_reader)
            await database._run(database._limit, timeout_s)
        except BaseException:
            await database.close()
            raise
        return database

    async def do(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises StoreUnavailable, Corrupt, and what ``work`` raises, which then has changed nothing."""
        return await self._run(self._transact, lambda at: work(at, *args, **kwargs))

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
            async with asyncio.timeout(self._timeout_s):
                return await self._thread.run(work, *args, **kwargs)
        except NotBegun as error:
            raise _Spared(f"{self.path}: {error}") from error
        except TimeoutError as error:
            raise StoreUnavailable(f"{self.path}: no answer within {self._timeout_s} s") from error
        except sqlite3.Error as error:
            raise self._translate(error) from error
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror}") from error

    def _translate(self, error: sqlite3.Error) -> StoreUnavailable | Corrupt:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        told = f"{self.path}: {getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"
        return Corrupt(told) if code == sqlite3.SQLITE_CORRUPT else StoreUnavailable(told)

    # From here on in the thread.

    def _connect(self) -> sqlite3.Connection:
        self._thread.connection = sqlite3.connect(self.path, timeout=self._timeout_s / 2, isolation_level=None)
        return self._thread.connection

    def _limit(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        if self._thread.connection is not None:
            self._thread.connection.execute(f"PRAGMA busy_timeout = {round(timeout_s * 500)}")

    def _connect_reader(self) -> None:
        self._connect().execute("PRAGMA query_only = ON")

    def _connect_writer(self, synchronous: Synchronous) -> None:
        create_private(self.path)
        connection = self._connect()
        check_version(connection)
        mode = _begin_wal(connection)
        if mode != "wal":
            raise StoreUnavailable(f"{self.path}: its file system cannot hold a write-ahead log")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {MAX_WAL_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        migrate(connection)
        self._begin = "BEGIN IMMEDIATE"

    def _checkpoint(self) -> None:
        if self._thread.connection is not None:
            self._thread.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        clock = self._clock
        return self._thread.transact(
            self._begin,
            lambda connection: work(Transaction(connection, clock.monotonic(), clock.unix_time(), clock.boot)),
        )
