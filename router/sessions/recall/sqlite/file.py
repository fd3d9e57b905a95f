"""A SQLite file, or memory, and the thread that reads and writes it: every call is a transaction, whole or not at all.

The index mirrors the log, so the file of an older release is emptied and built again. A file of another program is not touched.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from router.runtime.sqlite_thread import NotBegun, SqliteThread, begin_wal, create_private
from router.sessions.recall.index import IndexUnavailable

P = ParamSpec("P")
T = TypeVar("T")

APPLICATION_ID = 0x77617278
"""Marks the file as ours: the letters "warx"."""
VERSION = 2
BUSY_S = 5.0
"""Time that a transaction waits for another process."""

# The id of a piece is made of its session and its place there (see rows.py), so the pieces of a session are neighbours in
# each table. "used" grows with each addition, whose Unix time is "touched_at". "dropped" has the sessions that are not found
# any more and whose pieces are still to be deleted. A row of "vector" is a block of vectors, with the id of the first.
# "total" is the sum of the bytes of sessions.
SCHEMA = (
    """CREATE TABLE session (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sid TEXT NOT NULL,
        owner TEXT NOT NULL,
        newest INTEGER NOT NULL,
        embedded INTEGER NOT NULL,
        pieces INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        used INTEGER NOT NULL,
        touched_at REAL NOT NULL,
        UNIQUE (sid, owner)
    )""",
    "CREATE INDEX session_use ON session (used)",
    "CREATE INDEX session_age ON session (touched_at)",
    "CREATE TABLE total (bytes INTEGER NOT NULL)",
    "INSERT INTO total VALUES (0)",
    """CREATE TRIGGER total_of_changed AFTER UPDATE OF bytes ON session
        BEGIN UPDATE total SET bytes = bytes + new.bytes - old.bytes; END""",
    """CREATE TRIGGER total_of_deleted AFTER DELETE ON session BEGIN UPDATE total SET bytes = bytes - old.bytes; END""",
    "CREATE TABLE dropped (id INTEGER PRIMARY KEY)",
    "CREATE TABLE piece (id INTEGER PRIMARY KEY, text TEXT NOT NULL)",
    "CREATE TABLE vector (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE model (name TEXT NOT NULL)",
    """CREATE VIRTUAL TABLE word USING fts5 (
        text, content = 'piece', content_rowid = 'id', detail = none, columnsize = 0,
        tokenize = 'porter unicode61 remove_diacritics 2'
    )""",
)
TABLES = ("word", "session", "total", "dropped", "piece", "vector", "model")


class IndexFile:
    def __init__(self, path: Path, max_pending: int) -> None:
        self.path = path
        self._thread = SqliteThread("recall", max_pending)

    @property
    def pending(self) -> int:
        """Calls that wait for the thread, and the one that it runs."""
        return self._thread.pending

    @property
    def max_pending(self) -> int:
        return self._thread.max_pending

    @classmethod
    async def open(cls, path: Path, max_pending: int) -> Self:
        """A new file can be read by its owner only. Raises IndexUnavailable."""
        file = cls(path, max_pending)
        try:
            await file._run(file._connect)
        except BaseException:
            await file.close()
            raise
        return file

    async def read(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises IndexUnavailable. A cancelled call is not begun, or runs to its end."""
        return await self._run(self._thread.transact, "BEGIN", lambda connection: work(connection, *args, **kwargs))

    async def write(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs with the lock of the file, so that other processes write before or after it. Raises IndexUnavailable. A
        cancelled call is not begun, or runs to its end."""
        return await self._run(
            self._thread.transact, "BEGIN IMMEDIATE", lambda connection: work(connection, *args, **kwargs)
        )

    async def overwrite(self) -> None:
        """Removes deleted data from the write-ahead log, by bringing the log into the file and cutting it to nothing. Raises
        IndexUnavailable, also where another process reads the file."""
        await self._run(self._thread.truncate_wal)

    async def close(self) -> None:
        """Earlier calls are done first. Closing again does nothing."""
        await self._thread.close()

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._thread.run(work, *args, **kwargs)
        except NotBegun as error:
            raise IndexUnavailable(f"{self.path}: {error}") from error
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            raise IndexUnavailable(f"{self.path}: {name}: {error}") from error
        except OSError as error:
            raise IndexUnavailable(f"{self.path}: {error.strerror}") from error

    # The methods below run in the thread.

    def _connect(self) -> None:
        create_private(self.path)
        connection = self._thread.connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        _check(connection)
        # NORMAL: what a power failure takes away is indexed anew. Deleted words of FTS5 are overwritten from SQLite 3.42 on;
        # older releases keep them until their segments merge.
        with suppress(sqlite3.OperationalError):  # an index that may be thrown away works without a write-ahead log too
            begin_wal(connection, "NORMAL")
        self._thread.transact("BEGIN IMMEDIATE", _migrate)


def _check(connection: sqlite3.Connection) -> None:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if tables and application_id != APPLICATION_ID:
        raise IndexUnavailable("the file is a database of another program")


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    for table in TABLES:
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in SCHEMA:
        connection.execute(statement)
    with suppress(sqlite3.OperationalError):
        connection.execute("INSERT INTO word (word, rank) VALUES ('secure-delete', 1)")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
