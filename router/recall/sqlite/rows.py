"""What sessions' items say, in pieces, in the tables of ``file.py``: added, found and deleted, inside a transaction. Whatever
is found, the query itself asks for it by ``sid`` and ``owner``.

A piece's id is ``session << 32 | item's number << 7 | place in the item``. So one range of ids is a session, whole or up to an
item.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from router.core.request import Sid, Tenant
from router.recall.index import Passage
from router.recall.pieces import pieces
from router.recall.words import spaced

SESSION_BITS, PIECE_BITS = 32, 7
MAX_NUMBER = (1 << SESSION_BITS - PIECE_BITS) - 1
MAX_POSTINGS = 2000
"""A word that more of a session's pieces have says little; the newest of them are read only if all words are such."""
DROPPED_AT_ONCE = 500
"""Pieces deleted by one transaction at most, that searches need not wait long."""


class Session(NamedTuple):
    """Its row. ``newest``: the greatest number that was added. ``bytes``: of its texts and vectors."""

    id: int
    newest: int
    pieces: int
    bytes: int


class Piece(NamedTuple):
    id: int
    text: str


def number_of(place: int) -> int:
    """The item's number, from a place within a session: an id without the session's."""
    return place >> PIECE_BITS


def last_place(number: int) -> int:
    """Where the pieces of the item ``number`` end, within a session."""
    return (max(min(number, MAX_NUMBER), 0) << PIECE_BITS) + (1 << PIECE_BITS) - 1


def find(connection: sqlite3.Connection, sid: Sid, owner: Tenant) -> Session | None:
    row = connection.execute(
        "SELECT id, newest, pieces, bytes FROM session s WHERE s.sid = ? AND s.owner = ?", (sid, owner)
    ).fetchone()
    return Session(*row) if row else None


def newest(connection: sqlite3.Connection, sid: Sid, owner: Tenant) -> int:
    session = find(connection, sid, owner)
    return session.newest if session else 0


def add(
    connection: sqlite3.Connection, sid: Sid, owner: Tenant, passages: Sequence[Passage], max_session_pieces: int
) -> None:
    """Those after the newest; the oldest go where there are too many."""
    session = find(connection, sid, owner) or _begin(connection, sid, owner)
    new = [passage for passage in passages if session.newest < passage.number <= MAX_NUMBER]
    rows = [
        (session.id << SESSION_BITS | passage.number << PIECE_BITS | at, len(piece), piece)
        for passage in new
        for at, piece in enumerate(pieces(spaced(passage.text)))
    ]
    connection.executemany("INSERT INTO piece VALUES (?, ?, ?)", rows)
    connection.executemany("INSERT INTO word (rowid, text) VALUES (?, ?)", ((id_, text) for id_, _, text in rows))
    connection.execute(
        "UPDATE session SET newest = ?, pieces = pieces + ?, bytes = bytes + ?,"
        " used = (SELECT max(used) + 1 FROM session) WHERE id = ?",
        (
            max((passage.number for passage in new), default=session.newest),
            len(rows),
            sum(len(text.encode()) for _, _, text in rows),
            session.id,
        ),
    )
    if (excess := session.pieces + len(rows) - max_session_pieces) > 0:
        _delete_oldest(connection, session.id, excess)


def _begin(connection: sqlite3.Connection, sid: Sid, owner: Tenant) -> Session:
    added = connection.execute(
        "INSERT INTO session (sid, owner, newest, pieces, bytes, used) VALUES (?, ?, 0, 0, 0, 0)", (sid, owner)
    )
    return Session(added.lastrowid or 0, 0, 0, 0)


def without_vector(connection: sqlite3.Connection, sid: Sid, owner: Tenant, limit: int) -> list[Piece]:
    """The first pieces after the last that has a vector: vectors are added in order."""
    found = connection.execute(
        "SELECT p.id, p.text FROM session s CROSS JOIN piece p WHERE s.sid = ? AND s.owner = ? AND p.id > coalesce("
        "(SELECT max(v.id) FROM vector v WHERE v.id BETWEEN s.id << 32 AND (s.id << 32) + ?), s.id << 32)"
        " AND p.id BETWEEN s.id << 32 AND (s.id << 32) + ? ORDER BY p.id LIMIT ?",
        (sid, owner, last_place(MAX_NUMBER), last_place(MAX_NUMBER), limit),
    )
    return [Piece(*row) for row in found]


def add_vectors(connection: sqlite3.Connection, sid: Sid, owner: Tenant, vectors: Sequence[tuple[int, bytes]]) -> None:
    """``(id, body)``. Those whose piece has gone meanwhile, or has a vector already, are left out."""
    added = 0
    for id_, body in vectors:
        done = connection.execute(
            "INSERT OR IGNORE INTO vector SELECT p.id, ? FROM session s JOIN piece p ON p.id >> 32 = s.id"
            " WHERE p.id = ? AND s.sid = ? AND s.owner = ?",
            (body, id_, sid, owner),
        )
        added += len(body) * done.rowcount
    connection.execute("UPDATE session AS s SET bytes = bytes + ? WHERE s.sid = ? AND s.owner = ?", (added, sid, owner))


def postings(
    connection: sqlite3.Connection, sid: Sid, owner: Tenant, words: Sequence[str], upto: int
) -> list[list[tuple[int, int]]]:
    """For each word that is not too common ``(place, size)`` of the pieces that have it, newest first. ``words``: letters and
    digits only."""
    query = (
        "SELECT w.rowid - (s.id << 32), p.size FROM session s CROSS JOIN word w"
        " CROSS JOIN piece p ON p.id = w.rowid WHERE s.sid = ? AND s.owner = ? AND w.word MATCH ?"
        " AND w.rowid BETWEEN s.id << 32 AND (s.id << 32) + ? ORDER BY w.rowid DESC LIMIT ?"
    )
    found = [
        connection.execute(query, (sid, owner, f'"{word}"', last_place(upto), MAX_POSTINGS + 1)).fetchall()
        for word in words
    ]
    return [postings for postings in found if len(postings) <= MAX_POSTINGS] or found


def vectors(connection: sqlite3.Connection, sid: Sid, owner: Tenant, upto: int) -> list[tuple[int, bytes]]:
    """``(place, body)`` of all pieces that have one, in order."""
    return connection.execute(
        "SELECT v.id - (s.id << 32), v.body FROM session s CROSS JOIN vector v"
        " WHERE s.sid = ? AND s.owner = ? AND v.id BETWEEN s.id << 32 AND (s.id << 32) + ? ORDER BY v.id",
        (sid, owner, last_place(upto)),
    ).fetchall()


def keep_model(connection: sqlite3.Connection, name: str) -> None:
    """Vectors of another model than ``name`` go: they cannot be compared."""
    if connection.execute("SELECT name FROM model").fetchall() != [(name,)]:
        stored = connection.execute(
            "SELECT sum(length(body)), id >> 32 AS session FROM vector GROUP BY session"
        ).fetchall()
        connection.executemany("UPDATE session SET bytes = bytes - ? WHERE id = ?", stored)
        connection.execute("DELETE FROM vector")
        connection.execute("DELETE FROM model")
        connection.execute("INSERT INTO model VALUES (?)", (name,))


def forget(connection: sqlite3.Connection, sid: Sid, owner: Tenant) -> None:
    """From now on nobody finds it; ``delete_dropped`` then deletes it."""
    connection.execute("INSERT INTO dropped SELECT s.id FROM session s WHERE s.sid = ? AND s.owner = ?", (sid, owner))
    connection.execute("DELETE FROM session AS s WHERE s.sid = ? AND s.owner = ?", (sid, owner))


def forget_oldest(connection: sqlite3.Connection, max_bytes: int) -> None:
    """As ``forget``: those that were not added to for longest, until the others have ``max_bytes`` at most. The one that was
    added to last stays in any case."""
    while True:
        (excess,) = connection.execute("SELECT bytes - ? FROM total", (max_bytes,)).fetchone()
        oldest = connection.execute("SELECT id FROM session ORDER BY used LIMIT 2").fetchall()
        if excess <= 0 or len(oldest) < 2:
            return
        connection.execute("INSERT INTO dropped VALUES (?)", oldest[0])
        connection.execute("DELETE FROM session WHERE id = ?", oldest[0])


def delete_dropped(connection: sqlite3.Connection) -> bool:
    """DROPPED_AT_ONCE pieces of a session that was dropped. Whether there was one."""
    row = connection.execute("SELECT id FROM dropped LIMIT 1").fetchone()
    if row is None:
        return False
    gone, _ = _delete(connection, row[0], DROPPED_AT_ONCE)
    if not gone:
        connection.execute("DELETE FROM dropped WHERE id = ?", row)
    return True


def _delete_oldest(connection: sqlite3.Connection, session: int, pieces: int) -> None:
    gone, bytes_ = _delete(connection, session, pieces)
    connection.execute(
        "UPDATE session SET pieces = pieces - ?, bytes = bytes - ? WHERE id = ?", (gone, bytes_, session)
    )


def _delete(connection: sqlite3.Connection, session: int, limit: int) -> tuple[int, int]:
    """The session's first pieces, with words and vectors. How many, and of how many bytes."""
    first = session << SESSION_BITS
    found = connection.execute(
        "SELECT p.id, p.text, coalesce(length(v.body), 0) FROM piece p LEFT JOIN vector v ON v.id = p.id"
        " WHERE p.id BETWEEN ? AND ? ORDER BY p.id LIMIT ?",
        (first, first + last_place(MAX_NUMBER), limit),
    ).fetchall()
    # An index whose text is kept outside is told what the text was.
    connection.executemany(
        "INSERT INTO word (word, rowid, text) VALUES ('delete', ?, ?)", ((id_, text) for id_, text, _ in found)
    )
    ids = [(id_,) for id_, _, _ in found]
    connection.executemany("DELETE FROM vector WHERE id = ?", ids)
    connection.executemany("DELETE FROM piece WHERE id = ?", ids)
    return len(found), sum(len(text.encode()) + vector_bytes for _, text, vector_bytes in found)
