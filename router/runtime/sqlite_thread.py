"""A connection to SQLite and the thread that it lives in, so that no file holds the event loop. What the file has, and what its
errors mean, others say.
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
"""The database is in this process's memory, and each connection has one of its own."""

MAX_WAL_BYTES = 64 << 20
"""A write-ahead log that has grown longer is cut to this."""
WAL_TRIES, WAL_PAUSE_S = 50, 0.02


class NotBegun(Exception):
    """The call was not begun, and never will be: too many wait, it waited too long, or the file is closed. The message says
    which."""


class _Job(Generic[T]):
    """A call in the thread's queue. ``drop`` frees what it holds: a queue behind a disk that hangs must not keep it."""

    def __init__(self, work: Callable[[], T], is_due: Callable[[], bool]) -> None:
        self._work: Callable[[], T] | None = work
        self._is_due = is_due

    def __call__(self) -> T:
        work = self._work
        if work is None or not self._is_due():
            raise NotBegun("its time was over before its turn came")
        return work()

    def drop(self) -> None:
        self._work = None


class _Bell:
    """Rung by the thread when a call is done, and by time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heard: asyncio.Future[None] = loop.create_future()

    def ring_from_thread(self, _done: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody listens
            self._loop.call_soon_threadsafe(self._ring)

    async def heard(self, within_s: float) -> None:
        """It was rung, or so much time is over."""
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
    """``pending``: calls that wait for the thread, and the one that it is at. ``connection``: the thread's; None: none."""

    def __init__(self, name: str, max_pending: int) -> None:
        self.pending = 0
        self.max_pending = max_pending
        self.connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A call that is cancelled is not begun, or runs to its end. Raises NotBegun, and what ``work`` raises."""
        return await self.run_within(inf, time.monotonic, partial(work, *args, **kwargs))

    async def run_within(self, timeout_s: float, clock: Callable[[], float], work: Callable[[], T]) -> T:
        """A call whose fate is known: one that has not begun after ``timeout_s`` never does, and one that has is waited for as
        long again. Time is measured where the call runs, so that a loop that is held up takes none of it.

        Raises NotBegun; TimeoutError, where the call may still come out whole; and what ``work`` raises.
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
        """The same, of what nobody waits for. Raises RuntimeError where it is closed."""
        return self._thread.submit(work, *args, **kwargs)

    async def close(self) -> None:
        """What was asked before is done first. Closing again does nothing."""
        with suppress(RuntimeError):
            self._thread.submit(self.disconnect)
        await asyncio.to_thread(self._thread.shutdown)

    # From here on in the thread.

    def transact(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """A transaction, whole or not at all. ``begin``: the statement. Raises NotBegun, sqlite3.Error, and what ``work``
        raises."""
        connection = self.require_connection()
        connection.execute(begin)
        try:
            answer = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            # Some errors have ended the transaction already.
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
    """The journal's mode from now on. SQLite waits for no lock here, so several who open a new file at once would refuse each
    other."""
    for _ in range(WAL_TRIES):
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
        time.sleep(WAL_PAUSE_S)
    return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])


def create_private(path: Path) -> None:
    """For nobody else's eyes, whatever the umask. A file that is there is not opened: closing it would drop the locks that
    this process may have on it. ``IN_MEMORY`` needs no file."""
    if path == IN_MEMORY:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
