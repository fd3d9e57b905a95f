"""Sessions in this process's memory, for tests and trials: nothing outlives the process, and only lifetimes bound it."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from router.core.request import Tenant
from router.sessions.store import (
    LINE_PATIENCE_S,
    Append,
    Begin,
    Begun,
    Busy,
    Fenced,
    Known,
    Loaded,
    Repeated,
    Sid,
    TurnRecord,
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


class MemoryStore:
    """``clock``: monotonic; ``wall_clock``: Unix time, which is only shown."""

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._sessions: dict[Sid, _Session] = {}
        self._documents: dict[Sid, tuple[Tenant, bytes, float]] = {}
        self._fence = 0
        """Of all sessions: one that was deleted must not have given the fence of one that bears its name later."""

    async def ping(self) -> None:
        return

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        session = self._find(begin.sid, begin.owner)
        if session is None:
            if not begin.creates or begin.sid in self._sessions:
                return None
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
        session.line.pop(begin.token, None)
        self._fence += 1
        session.fence = self._fence
        session.holder = begin.token
        session.claimed_until = now + begin.lease_s
        session.expires_at = self._end_of(begin.lifetime_s)
        session.turns.append(_Turn(begin.record))
        session.claimed_turn = len(session.turns)
        if begin.idempotency_key:
            session.keys[begin.idempotency_key] = session.claimed_turn
        starts_over, tail, view = _unknown(session, begin.known)
        appended = bool(begin.entries) and not tail and not starts_over and begin.turn == session.claimed_turn
        if appended:
            session.entries += begin.entries
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
        session.entries += append.entries
        session.worker = append.worker or session.worker
        session.expires_at = self._end_of(append.lifetime_s)
        if append.record is not None:
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

    async def load(self, sid: Sid, owner: Tenant, known: Known) -> Loaded | None:
        session = self._find(sid, owner)
        if session is None:
            return None
        starts_over, tail, view = _unknown(session, known)
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
        session = self._new(sid, owner)
        session.entries += entries
        session.attributes = attributes
        session.turns = [_Turn(b"", has_ended=True) for _ in range(turns)]
        session.expires_at = self._end_of(lifetime_s)
        return True

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        session = self._find(sid, owner)
        if session is None:
            return False
        session.attributes = attributes
        return True

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        session = self._find(sid, owner)
        if session is None or session.generation != generation or session.epoch != epoch:
            return False
        session.epoch += 1
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
        del self._sessions[sid]
        return True

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        found = self._documents.get(key)
        if found is None or found[0] == owner or found[2] <= self._clock():
            self._documents[key] = (owner, body, self._end_of(lifetime_s))

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None:
        found = self._documents.get(key)
        if found is None or found[0] != owner or found[2] <= self._clock():
            return None
        return found[1]

    async def delete_document(self, key: Sid, owner: Tenant) -> bool:
        if await self.get_document(key, owner) is None:
            return False
        del self._documents[key]
        return True

    async def close(self) -> None:
        self._sessions.clear()
        self._documents.clear()

    def _find(self, sid: Sid, owner: Tenant) -> _Session | None:
        session = self._sessions.get(sid)
        if session is None:
            return None
        if session.expires_at <= self._clock():
            del self._sessions[sid]
            return None
        return session if session.owner == owner else None

    def _new(self, sid: Sid, owner: Tenant) -> _Session:
        session = _Session(owner, secrets.token_hex(8), self._wall_clock(), inf)
        self._sessions[sid] = session
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


def _unknown(session: _Session, known: Known) -> tuple[bool, list[bytes], bytes | None]:
    """Must all be read anew; what of the log is not known; the view, where another is known.
    An unknown session without entries has nothing to be read."""
    is_ahead = known.generation == session.generation and known.head > len(session.entries)
    same = known.generation == session.generation and not is_ahead
    starts_over = is_ahead or (not same and bool(session.entries))
    tail = session.entries[known.head :] if same else session.entries[:]
    return starts_over, tail, session.view if not same or known.epoch != session.epoch else None
