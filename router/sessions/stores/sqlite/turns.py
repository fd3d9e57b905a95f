"""The calls of turns: to claim a session, wait for it, write to it and give it back. Each runs in a transaction."""

from __future__ import annotations

from router.core.request.request import Tenant
from router.sessions.stores.contract import (
    LINE_PATIENCE_S,
    Append,
    Begin,
    Begun,
    Busy,
    Corrupt,
    Fenced,
    OwnerLimits,
    Repeated,
    Sid,
    TurnRecord,
    size_of,
)
from router.sessions.stores.sqlite import rows
from router.sessions.stores.sqlite.database import Transaction
from router.sessions.stores.sqlite.rows import Session


def begin(at: Transaction, begin: Begin, generation: str, limits: OwnerLimits) -> Begun | Busy | Repeated | None:
    """``generation``: for a new session."""
    session = rows.find(at, begin.sid, begin.owner)
    if session is None:
        session = rows.add(at, begin.sid, begin.owner, generation) if begin.creates else None
        return _claim(at, session, begin, limits, sessions=1) if session else None
    if begin.idempotency_key and (repeated := _repeated(at, session, begin.idempotency_key)):
        return repeated
    line = _line(at, session.sid)
    if session.is_claimed(at) or (line and line[0] != begin.token):
        return _line_up(at, begin, line)
    if line:
        _leave_line(at, session.sid, begin.token)
    return _claim(at, session, begin, limits)


def append(at: Transaction, append: Append, limits: OwnerLimits) -> int:
    session = rows.find(at, append.sid, append.owner)
    if session is None or session.generation != append.generation:
        raise Fenced
    turn = rows.read_turn(at, session, append.turn)
    if turn is None:
        raise Fenced
    if append.ends and turn.has_ended:
        return session.head
    holds = session.fence == append.fence and bool(session.holder)
    if not holds and not (append.is_late and append.ends):
        raise Fenced
    if append.entries and not append.ends:
        rows.require_room(at, append.owner, limits, added_bytes=size_of(append.entries))
    rows.extend(at, session, append.entries)
    if append.ends or append.record is not None:
        record = turn.record if append.record is None else append.record
        rows.write_turn(at, session, append.turn, TurnRecord(turn.has_ended or append.ends, record), turn)
    session.worker = append.worker or session.worker
    session.expires_at = rows.end_of(at, append.lifetime_s)
    if append.ends and holds:
        session.release()
    rows.save(at, session)
    return session.head


def renew(at: Transaction, sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
    session = rows.find(at, sid, owner)
    if session is None or session.fence != fence or not session.holder:
        raise Fenced
    session.claimed_until, session.boot = at.now + lease_s, at.boot
    rows.save(at, session)


def release(at: Transaction, sid: Sid, owner: Tenant, fence: int) -> None:
    session = rows.find(at, sid, owner)
    if session is not None and session.fence == fence:
        session.release()
        rows.save(at, session)


def leave(at: Transaction, sid: Sid, owner: Tenant, token: str) -> None:
    session = rows.find(at, sid, owner)
    if session is None:
        return
    _leave_line(at, sid, token)
    if session.holder == token:
        session.release()
        rows.save(at, session)


def _claim(at: Transaction, session: Session, begin: Begin, limits: OwnerLimits, sessions: int = 0) -> Begun:
    """``sessions``: 1 for a new session. Raises OwnerFull."""
    added_bytes = size_of(begin.entries) + len(begin.record)
    rows.require_room(at, begin.owner, limits, sessions=sessions, added_bytes=added_bytes)
    session.fence += 1
    session.turns += 1
    session.holder, session.claimed_turn = begin.token, session.turns
    session.claimed_until, session.boot = at.now + begin.lease_s, at.boot
    session.expires_at = rows.end_of(at, begin.lifetime_s)
    rows.write_turn(at, session, session.turns, TurnRecord(False, begin.record), None)
    if begin.idempotency_key:
        at.connection.execute(
            "REPLACE INTO idempotency_key VALUES (?, ?, ?)", (session.sid, begin.idempotency_key, session.turns)
        )
    starts_over, tail, view = rows.unknown(at, session, begin.cursor)
    appends = bool(begin.entries) and not tail and not starts_over and begin.turn == session.turns
    if appends:
        rows.extend(at, session, begin.entries)
    rows.save(at, session)
    return Begun(
        generation=session.generation,
        fence=session.fence,
        turn=session.turns,
        head=session.head,
        epoch=session.epoch,
        view=view,
        starts_over=starts_over,
        tail=tail,
        appended=appends,
        worker=session.worker,
    )


def _repeated(at: Transaction, session: Session, key: str) -> Repeated | None:
    row = at.connection.execute(
        "SELECT turn FROM idempotency_key WHERE sid = ? AND name = ?", (session.sid, key)
    ).fetchone()
    if row is None:
        return None
    turn = rows.read_turn(at, session, row[0])
    if turn is None:
        raise Corrupt(f"session {session.sid}: turn {row[0]} is missing")
    if turn.has_ended or (session.is_claimed(at) and session.claimed_turn == row[0]):
        return Repeated(row[0], turn.has_ended, turn.record)
    return None


def _line(at: Transaction, sid: Sid) -> list[str]:
    """Tokens of the turns that wait, in order. Turns that stopped asking are removed."""
    found = at.connection.execute(
        "SELECT place, token, asked_at, boot FROM line WHERE sid = ? ORDER BY place", (sid,)
    ).fetchall()
    line = []
    for place, token, asked_at, boot in found:
        if boot == at.boot and at.now - asked_at <= LINE_PATIENCE_S:
            line.append(token)
        else:
            at.connection.execute("DELETE FROM line WHERE sid = ? AND place = ?", (sid, place))
    return line


def _line_up(at: Transaction, begin: Begin, line: list[str]) -> Busy:
    is_in_line = begin.token in line
    if not begin.waits or (not is_in_line and len(line) >= begin.max_waiting):
        return Busy(0)
    if is_in_line:
        at.connection.execute(
            "UPDATE line SET asked_at = ? WHERE sid = ? AND token = ?", (at.now, begin.sid, begin.token)
        )
        return Busy(line.index(begin.token) + 1)
    at.connection.execute(
        "INSERT INTO line SELECT ?1, coalesce(max(place), 0) + 1, ?2, ?3, ?4 FROM line WHERE sid = ?1",
        (begin.sid, begin.token, at.now, at.boot),
    )
    return Busy(len(line) + 1)


def _leave_line(at: Transaction, sid: Sid, token: str) -> None:
    at.connection.execute("DELETE FROM line WHERE sid = ? AND token = ?", (sid, token))
