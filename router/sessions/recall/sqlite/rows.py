"""Adds, finds and deletes pieces of items in the tables of ``file.py``, inside a transaction. Every query that finds something
names ``sid`` and ``owner``.

A piece's id is ``session << 32 | its place in the session``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from router.core.request.request import Sid, Tenant
from router.sessions.recall.chunks import MAX_NUMBER, PIECE_BITS, last_place, pieces
from router.sessions.recall.index import Passage
from router.sessions.recall.words import spaced

SESSION_BITS = 32
MAX_POSTINGS = 2000
"""A word in more pieces of a session says little. It is read, with its newest pieces, only if all words of the query are
such."""
MAX_BLOCK_BYTES = 32 * 1024
"""A block of vectors of this size is followed by a new one. A search reads all blocks of a session, fastest from few long
rows."""
DROPPED_AT_ONCE = 500
"""Pieces deleted by one transaction at most, so that searches wait for a short time only."""


class Session(NamedTuple):
    """``newest``: the greatest number that was added. ``embedded``: the place of the last piece that has a vector. ``bytes``:
    of texts and vectors."""

    id: int
    newest: int
    embedded: int
    pieces: int
    bytes: int


class Piece(NamedTuple):
    id: int
    text: str


def place_of(id_: int) -> int:
    """The place in its session."""
    return id_ & ((1 << SESSION_BITS) - 1)


def find(connection: sqlite3.Connection, sid: Sid, owner: Tenant) -> Session | None:
    row = connection.execute(
        "SELECT id, newest, embedded, pieces, bytes FROM session s WHERE s.sid = ? AND s.owner = ?", (sid, owner)
    ).fetchone()
    return Session(*row) if row else None


def newest(connection: sqlite3.Connection, sid: Sid, owner: Tenant) -> int:
    session = find(connection, sid, owner)
    return session.newest if session else 0


def add(
    connection: sqlite3.Connection,
    sid: Sid,
    owner: Tenant,
    passages: Sequence[Passage],
    max_session_pieces: int,
    now: float,
) -> int:
    """Adds passages after the newest, and deletes the oldest pieces where there are too many. Returns the number of deleted
    pieces. ``now``: Unix time."""
    session = find(connection, sid, owner) or _begin(connection, sid, owner)
    new = [passage for passage in passages if session.newest < passage.number <= MAX_NUMBER]
    rows = [
        (session.id << SESSION_BITS | passage.number << PIECE_BITS | at, piece)
        for passage in new
        for at, piece in enumerate(pieces(spaced(passage.text)))
    ]
    connection.executemany("INSERT INTO piece VALUES (?, ?)", rows)
    connection.executemany("INSERT INTO word (rowid, text) VALUES (?, ?)", rows)
    connection.execute(
        "UPDATE session SET newest = ?, pieces = pieces + ?, bytes = bytes + ?,"
        " used = (SELECT max(used) + 1 FROM session), touched_at = ? WHERE id = ?",
        (
            max((passage.number for passage in new), default=session.newest),
            len(rows),
            sum(len(text.encode()) for _, text in rows),
            now,
            session.id,
        ),
    )
    excess = session.pieces + len(rows) - max_session_pieces
    return _delete_oldest(connection, session.id, excess) if excess > 0 else 0


def _begin(connection: sqlite3.Connection, sid: Sid, owner: Tenant) -> Session:
    added = connection.execute(
        "INSERT INTO session (sid, owner, newest, embedded, pieces, bytes, used, touched_at)"
        " VALUES (?, ?, 0, 0, 0, 0, 0, 0)",
        (sid, owner),
    )
    return Session(added.lastrowid or 0, 0, 0, 0, 0)


def without_vector(connection: sqlite3.Connection, sid: Sid, owner: Tenant, limit: int) -> list[Piece]:
    """The first pieces after the last that has a vector: vectors are added in order."""
    found = connection.execute(
        "SELECT p.id, p.text FROM session s CROSS JOIN piece p WHERE s.sid = ? AND s.owner = ?"
        " AND p.id > (s.id << 32) + s.embedded AND p.id <= (s.id << 32) + ? ORDER BY p.id LIMIT ?",
        (sid, owner, last_place(MAX_NUMBER), limit),
    )
    return [Piece(*row) for row in found]


def add_vectors(
    connection: sqlite3.Connection, sid: Sid, owner: Tenant, embedded: Sequence[Piece], block: bytes
) -> None:
    """``block``: the vectors of these pieces. Adds nothing if a piece has a vector already, or the session has begun anew."""
    session = find(connection, sid, owner)
    first, last = embedded[0].id, embedded[-1].id
    if session is None or first >> SESSION_BITS != session.id or place_of(first) <= session.embedded:
        return
    latest = connection.execute(
        "SELECT id, body FROM vector WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
        (session.id << SESSION_BITS, last),
    ).fetchone()
    if latest is not None and len(latest[1]) < MAX_BLOCK_BYTES:
        connection.execute("UPDATE vector SET body = ? WHERE id = ?", (latest[1] + block, latest[0]))
    else:
        connection.execute("INSERT INTO vector VALUES (?, ?)", (first, block))
    connection.execute(
        "UPDATE session SET embedded = ?, bytes = bytes + ? WHERE id = ?", (place_of(last), len(block), session.id)
    )


def postings(
    connection: sqlite3.Connection, sid: Sid, owner: Tenant, words: Sequence[str], upto: int
) -> list[list[int]]:
    """For each word that is not too common, the places of the pieces that have it, newest first. ``words``: of letters and
    digits only."""
    query = (
        "SELECT w.rowid - (s.id << 32) FROM session s CROSS JOIN word w WHERE s.sid = ? AND s.owner = ?"
        " AND w.word MATCH ? AND w.rowid BETWEEN s.id << 32 AND (s.id << 32) + ? ORDER BY w.rowid DESC LIMIT ?"
    )
    found = [
        connection.execute(query, (sid, owner, f'"{word}"', last_place(upto), MAX_POSTINGS + 1)).fetchall()
        for word in words
    ]
    kept = [places for places in found if len(places) <= MAX_POSTINGS]
    return [[place for (place,) in places] for places in (kept if any(kept) else found)]


def vectors(connection: sqlite3.Connection, sid: Sid, owner: Tenant, upto: int) -> tuple[int, list[bytes]]:
    """The place of the oldest piece, and blocks with the vectors of all pieces up to the item ``upto`` and perhaps of more."""
    (oldest,) = connection.execute(
        "SELECT min(p.id) - (s.id << 32) FROM session s CROSS JOIN piece p WHERE s.sid = ? AND s.owner = ?"
        " AND p.id BETWEEN s.id << 32 AND (s.id << 32) + ?",
        (sid, owner, last_place(MAX_NUMBER)),
    ).fetchone()
    blocks = connection.execute(
        "SELECT v.body FROM session s CROSS JOIN vector v WHERE s.sid = ? AND s.owner = ?"
        " AND v.id BETWEEN s.id << 32 AND (s.id << 32) + ? ORDER BY v.id",
        (sid, owner, last_place(upto)),
    )
    return oldest or 0, [block for (block,) in blocks]


def keep_model(connection: sqlite3.Connection, name: str) -> None:
    """Deletes the vectors of any other model than ``name``: they cannot be compared."""
    if connection.execute("SELECT name FROM model").fetchall() != [(name,)]:
        stored = connection.execute(
            "SELECT sum(length(body)), id >> 32 AS session FROM vector GROUP BY session"
        ).fetchall()
        connection.executemany("UPDATE session SET embedded = 0, bytes = bytes - ? WHERE id = ?", stored)
        connection.execute("DELETE FROM vector")
        connection.execute("DELETE FROM model")
        connection.execute("INSERT INTO model VALUES (?)", (name,))


def forget(connection: sqlite3.Connection, sid: Sid, owner: Tenant) -> None:
    """From now on the session is not found. ``delete_dropped`` deletes it later."""
    connection.execute("INSERT INTO dropped SELECT s.id FROM session s WHERE s.sid = ? AND s.owner = ?", (sid, owner))
    connection.execute("DELETE FROM session AS s WHERE s.sid = ? AND s.owner = ?", (sid, owner))


def total_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the texts and vectors of all sessions."""
    (total,) = connection.execute("SELECT bytes FROM total").fetchone()
    return int(total)


def forget_oldest(connection: sqlite3.Connection, max_bytes: int) -> int:
    """Forgets the sessions that were added to least recently, until the others have ``max_bytes`` at most. The session that was
    added to last stays in any case. Returns the number of forgotten sessions."""
    forgotten = 0
    while total_bytes(connection) > max_bytes:
        oldest = connection.execute("SELECT id FROM session ORDER BY used LIMIT 2").fetchall()
        if len(oldest) < 2:
            break
        connection.execute("INSERT INTO dropped VALUES (?)", oldest[0])
        connection.execute("DELETE FROM session WHERE id = ?", oldest[0])
        forgotten += 1
    return forgotten


def forget_expired(connection: sqlite3.Connection, before: float) -> bool:
    """Forgets a session to which nothing was added since that Unix time. False: there was none."""
    row = connection.execute(
        "SELECT id FROM session WHERE touched_at < ? ORDER BY touched_at LIMIT 1", (before,)
    ).fetchone()
    if row is None:
        return False
    connection.execute("INSERT INTO dropped VALUES (?)", row)
    connection.execute("DELETE FROM session WHERE id = ?", row)
    return True


def delete_dropped(connection: sqlite3.Connection) -> bool:
    """Deletes DROPPED_AT_ONCE pieces of a dropped session. False: there was none."""
    row = connection.execute("SELECT id FROM dropped LIMIT 1").fetchone()
    if row is None:
        return False
    gone, _ = _delete(connection, row[0], DROPPED_AT_ONCE)
    if not gone:
        first = row[0] << SESSION_BITS
        connection.execute("DELETE FROM vector WHERE id BETWEEN ? AND ?", (first, first + last_place(MAX_NUMBER)))
        connection.execute("DELETE FROM dropped WHERE id = ?", row)
    return True


def _delete_oldest(connection: sqlite3.Connection, session: int, pieces: int) -> int:
    """Returns the number of deleted pieces."""
    gone, bytes_ = _delete(connection, session, pieces)
    connection.execute(
        "UPDATE session SET pieces = pieces - ?, bytes = bytes - ? WHERE id = ?", (gone, bytes_, session)
    )
    return gone


def _delete(connection: sqlite3.Connection, session: int, limit: int) -> tuple[int, int]:
    """Deletes the first pieces of a session with their words, and the blocks that have vectors of these pieces only. Returns
    the number of pieces and of bytes."""
    first = session << SESSION_BITS
    found = connection.execute(
        "SELECT id, text FROM piece WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
        (first, first + last_place(MAX_NUMBER), limit),
    ).fetchall()
    if not found:
        return 0, 0
    # FTS5 with external content needs the old text to delete its words.
    connection.executemany("INSERT INTO word (word, rowid, text) VALUES ('delete', ?, ?)", found)
    last = found[-1][0]
    connection.execute("DELETE FROM piece WHERE id BETWEEN ? AND ?", (first, last))
    # The last that begins among them may reach beyond.
    blocks = connection.execute(
        "SELECT id, length(body) FROM vector WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)
    ).fetchall()[:-1]
    connection.executemany("DELETE FROM vector WHERE id = ?", ((id_,) for id_, _ in blocks))
    return len(found), sum(len(text.encode()) for _, text in found) + sum(length for _, length in blocks)
