"""Finds, reads, writes and deletes the rows of a session, inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from operator import attrgetter

from router.core.request.request import NO_TENANT, Tenant
from router.sessions.stores.contract import (
    MAX_TAIL_BYTES,
    SESSION_OVERHEAD_BYTES,
    Corrupt,
    Cursor,
    Loaded,
    OwnerLimits,
    Sid,
    TurnRecord,
    Usage,
    size_of,
)
from router.sessions.stores.sqlite.database import Transaction
from router.sessions.stores.sqlite.schema import PARTS

DISK_SHARE, MUCH = 4, 8
"""A tenant may have four times the free disk, so one tenant alone gets four fifths of the disk. It may have an eighth of the
disk in any case: with less it is not the tenant that filled it."""


@dataclass(slots=True)
class Session:
    """A row of the table, column by column."""

    sid: Sid
    owner: Tenant
    generation: str
    created_at: float
    expires_at: float
    head: int = 0
    turns: int = 0
    given_turns: int = 0
    """Turns that the session was created with. They have ended, and have no rows."""
    fence: int = 0
    holder: str = ""
    """Token of the turn that holds the claim; empty where none does."""
    claimed_turn: int = 0
    claimed_until: float = 0.0
    boot: str = ""
    epoch: int = 0
    worker: str = ""
    bytes: int = SESSION_OVERHEAD_BYTES
    """All parts of the session, roughly: its owner is charged with them."""

    def is_claimed(self, at: Transaction) -> bool:
        return self.claimed_until > at.now and self.boot == at.boot

    def release(self) -> None:
        self.holder, self.claimed_turn, self.claimed_until = "", 0, 0.0


MAX_ERASED_BYTES = 1 << 20
"""Erased by one transaction, except for a row that is longer."""

_KINDS = (str, str, str, float, float, int, int, int, int, str, int, float, str, int, str, int)
"""Types of the columns. SQLite does not check them, and a damaged file may hold others."""
_columns = attrgetter(*(field.name for field in fields(Session)))
_NAMES = [field.name for field in fields(Session)]
# Not REPLACE: triggers do not see it delete the old row.
_SAVE = (
    f"INSERT INTO session VALUES ({', '.join('?' * len(_NAMES))}) ON CONFLICT (sid) DO UPDATE SET "  # noqa: S608
    + ", ".join(f"{name} = excluded.{name}" for name in _NAMES[1:])
)


def find(at: Transaction, sid: Sid, owner: Tenant) -> Session | None:
    row = at.connection.execute("SELECT * FROM session WHERE sid = ?", (sid,)).fetchone()
    if row is not None and not all(map(isinstance, row, _KINDS)):
        raise Corrupt(f"session {sid}: its row has values that nobody wrote")
    if row is None or row[1] != owner or row[4] <= at.unix_time:
        return None
    return Session(*row)


def is_owned(at: Transaction, sid: Sid, owner: Tenant) -> bool:
    """True also for a session that cannot be read."""
    found = at.connection.execute(
        "SELECT 1 FROM session WHERE sid = ? AND owner = ? AND expires_at > ?", (sid, owner, at.unix_time)
    )
    return found.fetchone() is not None


def add(at: Transaction, sid: Sid, owner: Tenant, generation: str) -> Session | None:
    """A new session, not yet saved. None: one exists, perhaps of another owner."""
    row = at.connection.execute("SELECT expires_at FROM session WHERE sid = ?", (sid,)).fetchone()
    if row is not None:
        if row[0] > at.unix_time:
            return None
        remove(at, sid)
    (fence,) = at.connection.execute("SELECT fence FROM last_fence").fetchone()
    return Session(sid, owner, generation, at.unix_time, inf, fence=fence)


def save(at: Transaction, session: Session) -> None:
    at.connection.execute(_SAVE, _columns(session))


def remove(at: Transaction, sid: Sid) -> None:
    """Deletes the session whole. The fences of the next session of that name are greater."""
    at.connection.execute(
        "UPDATE last_fence SET fence = max(fence, (SELECT CAST(fence AS INTEGER) FROM session WHERE sid = ?))", (sid,)
    )
    for table in (*PARTS, "session"):
        at.connection.execute(f"DELETE FROM {table} WHERE sid = ?", (sid,))  # noqa: S608


def extend(at: Transaction, session: Session, entries: Sequence[bytes]) -> None:
    at.connection.executemany(
        "INSERT INTO entry VALUES (?, ?, ?)",
        [(session.sid, seq, body) for seq, body in enumerate(entries, session.head + 1)],
    )
    session.head += len(entries)
    session.bytes += size_of(entries)


def end_of(at: Transaction, lifetime_s: float) -> float:
    return at.unix_time + lifetime_s if lifetime_s else inf


def unknown(at: Transaction, session: Session, cursor: Cursor) -> tuple[bool, list[bytes], bytes | None]:
    """Whether the caller must drop its copy; the entries that it lacks; the view, if the caller has another."""
    is_same = cursor.generation == session.generation and cursor.head <= session.head
    tail = _entries_behind(at, session, cursor.head if is_same else 0)
    view = None
    if session.epoch and not (is_same and cursor.epoch == session.epoch):
        view = read_body(at, "view", session.sid)
    return not is_same and max(cursor.head, session.head) > 0, tail, view


def _entries_behind(at: Transaction, session: Session, head: int) -> list[bytes]:
    """Entries after ``head``, as many as one tail may have."""
    tail: list[bytes] = []
    if head == session.head:
        return tail
    left = MAX_TAIL_BYTES
    rows = at.connection.execute(
        "SELECT seq, body FROM entry WHERE sid = ? AND seq > ? ORDER BY seq", (session.sid, head)
    )
    for seq, body in rows:
        if seq != head + len(tail) + 1 or not isinstance(body, bytes):
            break
        tail.append(body)
        left -= len(body)
        if left <= 0:
            return tail
    if head + len(tail) != session.head:
        raise Corrupt(f"session {session.sid}: entries are missing")
    return tail


def read_body(at: Transaction, table: str, sid: Sid) -> bytes | None:
    """``table``: view or attributes."""
    row = at.connection.execute(f"SELECT body FROM {table} WHERE sid = ?", (sid,)).fetchone()  # noqa: S608
    return row[0] if row else None


def write_body(at: Transaction, table: str, session: Session, body: bytes) -> None:
    """The caller saves the session afterwards."""
    session.bytes += len(body) - len(read_body(at, table, session.sid) or b"")
    at.connection.execute(f"REPLACE INTO {table} VALUES (?, ?)", (session.sid, body))  # noqa: S608


def read_turn(at: Transaction, session: Session, turn: int) -> TurnRecord | None:
    if 1 <= turn <= session.given_turns:
        return TurnRecord(True, b"")
    row = at.connection.execute(
        "SELECT has_ended, record FROM turn WHERE sid = ? AND seq = ?", (session.sid, turn)
    ).fetchone()
    return TurnRecord(bool(row[0]), row[1]) if row else None


def write_turn(at: Transaction, session: Session, turn: int, record: TurnRecord, before: TurnRecord | None) -> None:
    session.bytes += len(record.record) - (len(before.record) if before else 0)
    at.connection.execute("REPLACE INTO turn VALUES (?, ?, ?, ?)", (session.sid, turn, record.has_ended, record.record))


def load(at: Transaction, session: Session, cursor: Cursor) -> Loaded:
    starts_over, tail, view = unknown(at, session, cursor)
    return Loaded(
        generation=session.generation,
        head=session.head,
        epoch=session.epoch,
        view=view,
        starts_over=starts_over,
        tail=tail,
        attributes=read_body(at, "attributes", session.sid) or b"",
        turns=session.turns,
        is_claimed=session.is_claimed(at),
        created_at=session.created_at,
    )


def hide(at: Transaction, sid: Sid, owner: Tenant) -> bool:
    """From now on the session is absent. False: it was absent already."""
    if not is_owned(at, sid, owner):
        return False
    at.connection.execute("UPDATE session SET expires_at = 0 WHERE sid = ?", (sid,))
    return True


def remove_part(at: Transaction, sid: Sid, max_rows: int) -> bool:
    """Deletes the oldest rows of a hidden session, few enough for a short transaction. True: the session is gone."""
    for table in ("entry", "turn"):
        if (first_left := _first_left(at, table, sid, max_rows)) is not None:
            at.connection.execute(f"DELETE FROM {table} WHERE sid = ? AND seq < ?", (sid, first_left))  # noqa: S608
            return False
    remove(at, sid)
    return True


def _first_left(at: Transaction, table: str, sid: Sid, max_rows: int) -> int | None:
    """The first row that stays; None: all rows go."""
    column = "body" if table == "entry" else "record"
    found = at.connection.execute(
        f"SELECT seq, length({column}) FROM {table} WHERE sid = ? ORDER BY seq LIMIT ?",  # noqa: S608
        (sid, max_rows + 1),
    )
    total = 0
    for number, (seq, size) in enumerate(found):
        total += size or 0
        if number and (number == max_rows or total > MAX_ERASED_BYTES):
            return int(seq)
    return None


def sweep_session(at: Transaction, max_rows: int) -> bool | None:
    """Deletes an expired session, or only its oldest rows where it has many. None: no session has expired."""
    row = at.connection.execute("SELECT sid FROM session WHERE expires_at <= ? LIMIT 1", (at.unix_time,)).fetchone()
    if row is None:
        return None
    # If the wall clock is set back, half a session must not come back.
    at.connection.execute("UPDATE session SET expires_at = 0 WHERE sid = ?", (row[0],))
    return remove_part(at, row[0], max_rows)


def usage(at: Transaction) -> dict[Tenant, Usage]:
    return {owner: Usage(*of_owner) for owner, *of_owner in at.connection.execute("SELECT * FROM usage")}


def usage_of(at: Transaction, owner: Tenant) -> Usage:
    row = at.connection.execute("SELECT sessions, documents, bytes FROM usage WHERE owner = ?", (owner,)).fetchone()
    return Usage(*row) if row else Usage()


def require_room(
    at: Transaction,
    owner: Tenant,
    limits: OwnerLimits,
    *,
    sessions: int = 0,
    documents: int = 0,
    added_bytes: int = 0,
) -> None:
    """Keeps the configured limits, and leaves room on the disk for other tenants. Raises OwnerFull."""
    if owner != NO_TENANT:
        free_bytes, disk_bytes = at.disk()
        limits = limits.within(max(DISK_SHARE * free_bytes, disk_bytes // MUCH))
    limits.require_room(usage_of(at, owner), sessions=sessions, documents=documents, added_bytes=added_bytes)
