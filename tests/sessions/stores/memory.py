"""The reference model of a session store, without file, thread or server. Tests hold stores against it, and use it as one."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from router.core.request.request import Tenant
from router.sessions.stores.contract import (
    DEFAULT_LIMITS,
    DOCUMENT_OVERHEAD_BYTES,
    LINE_PATIENCE_S,
    MAX_TAIL_BYTES,
    SESSION_OVERHEAD_BYTES,
    Append,
    Begin,
    Begun,
    Busy,
    Cursor,
    Fenced,
    Loaded,
    OwnerLimits,
    Repeated,
    Sid,
    TurnRecord,
    Usage,
    size_of,
)


@dataclass(slots=True)
class _Turn:
    record: bytes
    has_ended: bool = False


@dataclass(slots=True)
class _Session:
    owner: Tenant
    generation: str
    created_at: float
    expires_at: float
    attributes: bytes = b""
    entries: list[bytes] = field(default_factory=list)
    turns: list[_Turn] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)
    fence: int = 0
    holder: str = ""
    claimed_turn: int = 0
    claimed_until: float = 0.0
    line: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """Token → when it last asked."""
    epoch: int = 0
    view: bytes | None = None
    worker: str = ""
    bytes: int = SESSION_OVERHEAD_BYTES


class MemoryStore:
    """``clock``: monotonic; ``wall_clock``: Unix time, which is only shown."""

    def __init__(
        self, clock: Callable[[], float], wall_clock: Callable[[], float], limits: OwnerLimits = DEFAULT_LIMITS
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._usage: dict[Tenant, list[int]] = {}
        """Sessions, documents, bytes."""
        self._wall_clock = wall_clock
        self._sessions: dict[Sid, _Session] = {}
        self._documents: dict[Sid, tuple[Tenant, bytes, float]] = {}
        self._fence = 0
        """Of all sessions: one that was deleted must not have given the fence of one that bears its name later."""

    async def ping(self) -> None:
        return

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        session = self._find(begin.sid, begin.owner)
        added_bytes = size_of(begin.entries) + len(begin.record)
        if is_new := session is None:
            if not begin.creates or begin.sid in self._sessions:
                return None
            self._require_room(begin.owner, sessions=1, added_bytes=added_bytes)
            session = self._new(begin.sid, begin.owner)
        now = self._clock()
        is_claimed = session.claimed_until > now
        number = session.keys.get(begin.idempotency_key, 0) if begin.idempotency_key else 0
        if number and (session.turns[number - 1].has_ended or (is_claimed and session.claimed_turn == number)):
            turn = session.turns[number - 1]
            return Repeated(number, turn.has_ended, turn.record)
        for token, asked_at in tuple(session.line.items()):
            if now - asked_at > LINE_PATIENCE_S:
                del session.line[token]
        first = next(iter(session.line), begin.token)
        if is_claimed or first != begin.token:
            return self._line_up(session, begin, now)
        if not is_new:
            self._require_room(begin.owner, added_bytes=added_bytes)
        session.line.pop(begin.token, None)
        self._fence += 1
        session.fence = self._fence
        session.holder = begin.token
        session.claimed_until = now + begin.lease_s
        session.expires_at = self._end_of(begin.lifetime_s)
        session.turns.append(_Turn(begin.record))
        self._grow(session, len(begin.record))
        session.claimed_turn = len(session.turns)
        if begin.idempotency_key:
            session.keys[begin.idempotency_key] = session.claimed_turn
        starts_over, tail, view = _unknown(session, begin.cursor)
        appended = bool(begin.entries) and not tail and not starts_over and begin.turn == session.claimed_turn
        if appended:
            session.entries += begin.entries
            self._grow(session, size_of(begin.entries))
        return Begun(
            generation=session.generation,
            fence=session.fence,
            turn=session.claimed_turn,
            head=len(session.entries),
            epoch=session.epoch,
            view=view,
            starts_over=starts_over,
            tail=tail,
            appended=appended,
            worker=session.worker,
        )

    async def append(self, append: Append) -> int:
        session = self._find(append.sid, append.owner)
        if session is None or session.generation != append.generation:
            raise Fenced
        turn = session.turns[append.turn - 1]
        if append.ends and turn.has_ended:
            return len(session.entries)
        holds = session.fence == append.fence and bool(session.holder)
        if not holds and not (append.is_late and append.ends):
            raise Fenced
        if append.entries and not append.ends:
            self._require_room(append.owner, added_bytes=size_of(append.entries))
        session.entries += append.entries
        self._grow(session, size_of(append.entries))
        session.worker = append.worker or session.worker
        session.expires_at = self._end_of(append.lifetime_s)
        if append.record is not None:
            self._grow(session, len(append.record) - len(turn.record))
            turn.record = append.record
        if append.ends:
            turn.has_ended = True
            if holds:
                _release(session)
        return len(session.entries)

    async def renew(self, sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
        session = self._find(sid, owner)
        if session is None or session.fence != fence or not session.holder:
            raise Fenced
        session.claimed_until = self._clock() + lease_s

    async def release(self, sid: Sid, owner: Tenant, fence: int) -> None:
        session = self._find(sid, owner)
        if session is not None and session.fence == fence:
            _release(session)

    async def leave(self, sid: Sid, owner: Tenant, token: str) -> None:
        if (session := self._find(sid, owner)) is not None:
            session.line.pop(token, None)
            if session.holder == token:
                _release(session)

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None:
        session = self._find(sid, owner)
        if session is None:
            return None
        starts_over, tail, view = _unknown(session, cursor)
        return Loaded(
            generation=session.generation,
            head=len(session.entries),
            epoch=session.epoch,
            view=view,
            starts_over=starts_over,
            tail=tail,
            attributes=session.attributes,
            turns=len(session.turns),
            is_claimed=session.claimed_until > self._clock(),
            created_at=session.created_at,
        )

    async def create(
        self, sid: Sid, owner: Tenant, *, entries: Sequence[bytes], attributes: bytes, turns: int, lifetime_s: float
    ) -> bool:
        if self._find(sid, owner) is not None or sid in self._sessions:
            return False
        added_bytes = size_of(entries) + len(attributes)
        self._require_room(owner, sessions=1, added_bytes=added_bytes)
        session = self._new(sid, owner)
        self._grow(session, added_bytes)
        session.entries += entries
        session.attributes = attributes
        session.turns = [_Turn(b"", has_ended=True) for _ in range(turns)]
        session.expires_at = self._end_of(lifetime_s)
        return True

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        session = self._find(sid, owner)
        if session is None:
            return False
        self._grow(session, len(attributes) - len(session.attributes))
        session.attributes = attributes
        return True

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        session = self._find(sid, owner)
        if session is None or session.generation != generation or session.epoch != epoch:
            return False
        session.epoch += 1
        self._grow(session, len(view) - len(session.view or b""))
        session.view = view
        return True

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None:
        session = self._find(sid, owner)
        if session is None or not 1 <= turn <= len(session.turns):
            return None
        return TurnRecord(session.turns[turn - 1].has_ended, session.turns[turn - 1].record)

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        if self._find(sid, owner) is None:
            return False
        self._drop(sid)
        return True

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        found = self._documents.get(key)
        if found is not None and found[0] != owner and found[2] > self._clock():
            return
        self._drop_document(key)
        added_bytes = len(body) + DOCUMENT_OVERHEAD_BYTES
        self._require_room(owner, documents=1, added_bytes=added_bytes)
        self._documents[key] = (owner, body, self._end_of(lifetime_s))
        self._charge(owner, documents=1, added_bytes=added_bytes)

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None:
        found = self._documents.get(key)
        if found is None or found[0] != owner or found[2] <= self._clock():
            return None
        return found[1]

    async def delete_document(self, key: Sid, owner: Tenant) -> bool:
        if await self.get_document(key, owner) is None:
            return False
        self._drop_document(key)
        return True

    async def usage(self) -> Mapping[Tenant, Usage]:
        """Of each owner that ever had anything."""
        return {owner: Usage(*of_owner) for owner, of_owner in self._usage.items()}

    async def sweep(self, limit: int) -> int:
        """Deletes what has expired, so many sessions and documents at most. How many of both it has deleted."""
        now = self._clock()
        gone = [sid for sid, session in self._sessions.items() if session.expires_at <= now][:limit]
        for sid in gone:
            self._drop(sid)
        keys = [key for key, (_, _, expires_at) in self._documents.items() if expires_at <= now][: limit - len(gone)]
        for key in keys:
            self._drop_document(key)
        return len(gone) + len(keys)

    async def close(self) -> None:
        self._sessions.clear()
        self._documents.clear()
        self._usage.clear()

    def _require_room(self, owner: Tenant, *, sessions: int = 0, documents: int = 0, added_bytes: int = 0) -> None:
        usage = Usage(*self._usage.get(owner, (0, 0, 0)))
        self._limits.require_room(usage, sessions=sessions, documents=documents, added_bytes=added_bytes)

    def _charge(self, owner: Tenant, *, sessions: int = 0, documents: int = 0, added_bytes: int = 0) -> None:
        usage = self._usage.setdefault(owner, [0, 0, 0])
        for at, added in enumerate((sessions, documents, added_bytes)):
            usage[at] += added

    def _grow(self, session: _Session, added_bytes: int) -> None:
        session.bytes += added_bytes
        self._charge(session.owner, added_bytes=added_bytes)

    def _drop(self, sid: Sid) -> None:
        session = self._sessions.pop(sid)
        self._charge(session.owner, sessions=-1, added_bytes=-session.bytes)

    def _drop_document(self, key: Sid) -> None:
        if (found := self._documents.pop(key, None)) is not None:
            self._charge(found[0], documents=-1, added_bytes=-len(found[1]) - DOCUMENT_OVERHEAD_BYTES)

    def _find(self, sid: Sid, owner: Tenant) -> _Session | None:
        session = self._sessions.get(sid)
        if session is None:
            return None
        if session.expires_at <= self._clock():
            self._drop(sid)
            return None
        return session if session.owner == owner else None

    def _new(self, sid: Sid, owner: Tenant) -> _Session:
        session = _Session(owner, secrets.token_hex(8), self._wall_clock(), inf)
        self._sessions[sid] = session
        self._charge(owner, sessions=1, added_bytes=session.bytes)
        return session

    def _end_of(self, lifetime_s: float) -> float:
        return self._clock() + lifetime_s if lifetime_s else inf

    @staticmethod
    def _line_up(session: _Session, begin: Begin, now: float) -> Busy:
        line = session.line
        if not begin.waits or (begin.token not in line and len(line) >= begin.max_waiting):
            return Busy(0)
        line[begin.token] = now
        return Busy(list(line).index(begin.token) + 1)


def _release(session: _Session) -> None:
    session.holder = ""
    session.claimed_turn = 0
    session.claimed_until = 0.0


def _unknown(session: _Session, cursor: Cursor) -> tuple[bool, list[bytes], bytes | None]:
    """Must all be read anew; what of the log is not known; the view, where another is known.
    Where neither has entries, there is nothing to be read, nor to be forgotten."""
    same = cursor.generation == session.generation and cursor.head <= len(session.entries)
    starts_over = not same and bool(cursor.head or session.entries)
    tail = _capped(session.entries, cursor.head if same else 0)
    return starts_over, tail, session.view if not same or cursor.epoch != session.epoch else None


def _capped(entries: Sequence[bytes], head: int) -> list[bytes]:
    """Those behind that number, as many as one tail has at most."""
    left, end = MAX_TAIL_BYTES, head
    while end < len(entries) and left > 0:
        left -= len(entries[end])
        end += 1
    return list(entries[head:end])
