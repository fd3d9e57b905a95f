"""The tables, and the migrations of older files. A file of a newer release or of another program is never touched."""

from __future__ import annotations

import sqlite3

from router.sessions.stores.contract import StoreUnavailable

APPLICATION_ID = 0x77617272
"""Marks the file as ours: the letters "warr"."""

# Keys of rows that belong to a session begin with its sid, so that a session is one range of each table. Large values stand
# apart from the row of the session, which each turn writes twice, and in tables with rowids: without a rowid the row is the
# key, and a look-up reads large rows whole to compare them. No time is NULL: a session that never expires has an infinite
# one. "boot" names the boot whose monotonic clock a time was read from.
_SESSIONS = """
CREATE TABLE session (
    sid TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    generation TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    head INTEGER NOT NULL,
    turns INTEGER NOT NULL,
    given_turns INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    holder TEXT NOT NULL,
    claimed_turn INTEGER NOT NULL,
    claimed_until REAL NOT NULL,
    boot TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    worker TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX session_expiry ON session (expires_at);
CREATE TABLE entry (sid TEXT, seq INTEGER, body BLOB NOT NULL, PRIMARY KEY (sid, seq));
CREATE TABLE turn (sid TEXT, seq INTEGER, has_ended INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (sid, seq));
CREATE TABLE idempotency_key (sid TEXT, name TEXT, turn INTEGER NOT NULL, PRIMARY KEY (sid, name)) WITHOUT ROWID;
CREATE TABLE line (
    sid TEXT, place INTEGER, token TEXT NOT NULL, asked_at REAL NOT NULL, boot TEXT NOT NULL, PRIMARY KEY (sid, place)
) WITHOUT ROWID;
CREATE TABLE view (sid TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE attributes (sid TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE document (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, body BLOB NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX document_expiry ON document (expires_at);
CREATE TABLE last_fence (fence INTEGER NOT NULL);
INSERT INTO last_fence VALUES (0);
"""

# "usage" is what each owner has; triggers keep it. The code that writes a session counts its bytes. "pulse" is written to
# learn whether the disk takes writes.
_USAGE = (
    "ALTER TABLE session ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0",
    """CREATE TABLE usage (
        owner TEXT PRIMARY KEY, sessions INTEGER NOT NULL, documents INTEGER NOT NULL, bytes INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """UPDATE session SET bytes = 512
        + coalesce((SELECT sum(length(body) + 64) FROM entry WHERE entry.sid = session.sid), 0)
        + coalesce((SELECT sum(length(record)) FROM turn WHERE turn.sid = session.sid), 0)""",
    """INSERT INTO usage SELECT owner, sum(sessions), sum(documents), sum(bytes) FROM (
        SELECT owner, 1 AS sessions, 0 AS documents, bytes FROM session
        UNION ALL SELECT owner, 0, 1, length(body) + 256 FROM document
    ) GROUP BY owner""",
    """CREATE TRIGGER session_added AFTER INSERT ON session BEGIN
        INSERT INTO usage VALUES (new.owner, 1, 0, new.bytes) ON CONFLICT (owner)
        DO UPDATE SET sessions = sessions + 1, bytes = bytes + new.bytes; END""",
    """CREATE TRIGGER session_grown AFTER UPDATE OF bytes ON session WHEN new.bytes <> old.bytes BEGIN
        UPDATE usage SET bytes = bytes + new.bytes - old.bytes WHERE owner = new.owner; END""",
    """CREATE TRIGGER session_deleted AFTER DELETE ON session BEGIN
        UPDATE usage SET sessions = sessions - 1, bytes = bytes - old.bytes WHERE owner = old.owner; END""",
    """CREATE TRIGGER document_added AFTER INSERT ON document BEGIN
        INSERT INTO usage VALUES (new.owner, 0, 1, length(new.body) + 256) ON CONFLICT (owner)
        DO UPDATE SET documents = documents + 1, bytes = bytes + length(new.body) + 256; END""",
    """CREATE TRIGGER document_deleted AFTER DELETE ON document BEGIN
        UPDATE usage SET documents = documents - 1, bytes = bytes - length(old.body) - 256 WHERE owner = old.owner; END""",
    "CREATE TABLE pulse (beats INTEGER NOT NULL)",
    "INSERT INTO pulse VALUES (0)",
)

MIGRATIONS = (tuple(_SESSIONS.split(";")), _USAGE)
"""The n-th brings a file from version n - 1 to version n, statement by statement. Migrations are added and never changed."""

PARTS = ("entry", "turn", "idempotency_key", "line", "view", "attributes")
"""The tables with the parts of a session."""


def check_version(connection: sqlite3.Connection) -> int:
    """The version of the file; 0 for an empty file. Only reads. Raises StoreUnavailable where the file is not ours, or
    newer."""
    # In this order: another process may set up the file in between, and then the id, which is read last, is ours.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if (version or tables) and application_id != APPLICATION_ID:
        raise StoreUnavailable("the file is a database of another program")
    if version > len(MIGRATIONS):
        raise StoreUnavailable(
            f"the file was written by a newer release (its schema is {version}, this release knows {len(MIGRATIONS)})"
        )
    return int(version)


def migrate(connection: sqlite3.Connection) -> None:
    """All of it or nothing. If several processes open a file at once, one migrates it."""
    connection.execute("BEGIN IMMEDIATE")
    version = check_version(connection)
    for number, migration in enumerate(MIGRATIONS[version:], version + 1):
        for statement in migration:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("COMMIT")
