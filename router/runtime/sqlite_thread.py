"""A connection to SQLite in a thread of its own, so that no file blocks the event loop. Callers own the schema and the meaning
of errors.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

IN_MEMORY = Path(":memory:")
"""Path of a database in the memory of this process. Each connection to it has a database of its own."""

MAX_WAL_BYTES = 64 << 20
"""A longer write-ahead log is cut to this length."""
WAL_TRIES, WAL_PAUSE_S = 50, 0.02


class NotBegun(Exception):
    """The call has not begun and never will: too many calls wait, it waited too long, or the file is closed. The message says
    which."""


class _Job(Generic[T]):
    """A call in the queue of the thread. ``drop`` frees what it holds, which a queue at a disk that hangs must not keep."""

    def __init__(self, work: Callable[[], T], is_due: Callable[[], bool]) -> None:
        self._work: Callable[[], T] | None = work
        self._is_due = is_due

    def __call__(self) -> T:
        work = self._work
        if work is None or not self._is_due():
            raise NotBegun("its time was over before it could begin")
        return work()

    def drop(self) -> None:
        self._work = None


class _Bell:
    """Rung by the thread when a call is done, and by time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heard: asyncio.Future[None] = loop.create_future()

    def ring_from_thread(self, _done: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ring)

    async def heard(self, within_s: float) -> None:
        """Returns when the bell has rung, or after ``within_s``."""
        if self._heard.done():
            self._heard = self._loop.create_future()
        timer = self._loop.call_later(within_s, self._ring)
        try:
            await self._heard
        finally:
            timer.cancel()

    def _ring(self) -> None:
        if not self._heard.done():
            self._heard.set_result(None)


class SqliteThread:
    """``pending``: calls that wait for the thread, and the one that it runs. ``connection``: used only in the thread."""

    def __init__(self, name: str, max_pending: int) -> None:
        self.pending = 0
        self.max_pending = max_pending
        self.connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def __repr__(self) -> str:
        return f"SqliteThread(pending={self.pending}, is_open={self.connection is not None})"

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A call that is cancelled is not begun, or runs to its end. Raises NotBegun, and what ``work`` raises."""
        return await self.run_within(inf, time.monotonic, partial(work, *args, **kwargs))

    async def run_within(self, timeout_s: float, clock: Callable[[], float], work: Callable[[], T]) -> T:
        """A call that has not begun after ``timeout_s`` never begins, and one that has begun gets as long again. Time is
        measured in the thread, so that a blocked event loop takes none of it.

        Raises NotBegun; TimeoutError, after which the call may still succeed; and what ``work`` raises.
        """
        if self.pending >= self.max_pending:
            raise NotBegun(f"{self.pending} calls wait for it already")
        deadline = clock() + timeout_s
        job = _Job(work, lambda: clock() <= deadline)
        try:
            done = self.submit(job)
        except RuntimeError:
            raise NotBegun("closed") from None
        bell = _Bell(asyncio.get_running_loop())
        done.add_done_callback(bell.ring_from_thread)
        self.pending += 1
        try:
            for _ in range(2):
                await bell.heard(timeout_s)
                if done.cancel():
                    raise NotBegun(f"it was not begun within {timeout_s} s")
                if done.done():
                    return done.result()
            raise TimeoutError
        finally:
            self.pending -= 1
            done.cancel()
            job.drop()

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs ``work`` in the thread without waiting for it. Raises RuntimeError where the thread is closed."""
        return self._thread.submit(work, *args, **kwargs)

    async def close(self) -> None:
        """Earlier calls are done first. Closing again does nothing."""
        with suppress(RuntimeError):
            self._thread.submit(self.disconnect)
        await asyncio.to_thread(self._thread.shutdown)

    # The methods below run in the thread.

    def transact(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """A transaction. ``begin``: the statement that begins it. Raises NotBegun, sqlite3.Error, and what ``work`` raises."""
        connection = self.require_connection()
        connection.execute(begin)
        try:
            answer = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            # Some errors have rolled back already.
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return answer

    def require_connection(self) -> sqlite3.Connection:
        """Raises NotBegun."""
        if self.connection is None:
            raise NotBegun("closed")
        return self.connection

    def truncate_wal(self) -> None:
        """Brings the write-ahead log into the file and cuts it to nothing, with what was deleted. Raises NotBegun and
        sqlite3.Error, also where another process reads the file."""
        (is_busy, *_) = self.require_connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise sqlite3.OperationalError("others read it")

    def disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def begin_wal(connection: sqlite3.Connection, synchronous: str) -> bool:
    """Sets up a connection that writes: with a write-ahead log, and so that what is deleted is overwritten. False: the file
    system cannot hold such a log. Raises sqlite3.Error."""
    mode = _wal_mode(connection)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
    connection.execute("PRAGMA secure_delete = ON")
    return mode in ("wal", "memory")


def _wal_mode(connection: sqlite3.Connection) -> str:
    """The mode of the journal from now on. SQLite waits for no lock here, so processes that open a new file at once would
    refuse each other."""
    for _ in range(WAL_TRIES):
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
        time.sleep(WAL_PAUSE_S)
    return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])


def create_private(path: Path) -> None:
    """Creates the file so that only its owner can read it, whatever the umask. An existing file is not opened: closing it would
    drop the locks of this process on it."""
    if path == IN_MEMORY:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
