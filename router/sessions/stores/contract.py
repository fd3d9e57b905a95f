"""The contract of session stores. One suite of tests holds every store against it.

A session is an append-only log of entries, with a little state beside it. A store keeps bytes, and never reads what is in an
entry, a view, the record of a turn or a document. Every call is one round trip, and atomic: it happens wholly or not at all.

    begin         takes the claim, returns the part of the log that the caller lacks, appends the first entries of the turn
    append        adds entries to the turn whose claim the caller holds; the last call ends the turn
    renew         prolongs the claim of a turn that takes long
    release       gives the claim of a turn back that came to nothing
    leave         leaves the line, or gives the claim back of a ``begin`` whose answer never came

*Claim.* One turn at a time may write. A claim has a fence: a number that grows with every claim, also over sessions of the
same name. It has a lease, after which another turn may take the claim; the first can then write no more.
*Line.* A turn that begins while another holds the claim waits in the line of the session. It asks again with the same token
until it is first, and loses its place when it has not asked for ``LINE_PATIENCE_S``.
*Turns* are numbered from 1. An ``append`` ends a turn. Readers leave out a turn that never ended.
*Owner.* Every session and document belongs to a tenant. To any other tenant it is absent, and can be neither created nor
replaced.
*Room.* An owner has a bounded number of sessions, of documents and of bytes, counted roughly and with the overhead of the
store. The end of a turn that has begun always fits.
*Tails.* A call returns about ``MAX_TAIL_BYTES`` of a log at most. ``load`` returns the rest.
*Time.* Leases and lifetimes go by the clock of the store. All parts of a session live as long as the session.

Calls raise StoreUnavailable (the state of the store is unknown; Full: it is out of room; Crowded: other calls of the owner are
in the way), OwnerFull (the owner has no room left) or Corrupt (the store holds something that no router wrote), and nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from router.core.request.request import Sid as Sid
from router.core.request.request import Tenant

LINE_PATIENCE_S = 3.0

MAX_TAIL_BYTES = 4 << 20
"""Others wait for a few milliseconds while so much is read. A tail has at least one entry."""


class StoreUnavailable(Exception):
    """The store is unreachable, too slow, or refuses writes. Its state is unknown, which is not the same as empty."""

    was_asked = True
    """False: the store was not asked, so nothing of the call has happened."""


class Full(StoreUnavailable):
    """The store has no room to write, in memory or on disk. Nothing of the call has happened."""

    was_asked = False


class Crowded(StoreUnavailable):
    """The owner has so many calls under way that this one did not begin in time."""

    was_asked = False


class OwnerFull(Exception):
    """The owner has as much as it may have. The message says of what, and how much."""


class Usage(msgspec.Struct, frozen=True):
    """Sessions, documents and bytes of an owner."""

    sessions: int = 0
    documents: int = 0
    bytes: int = 0


class OwnerLimits(msgspec.Struct, frozen=True):
    """Bounds for one owner. ``max_sessions`` bounds the sessions, and also the documents."""

    max_sessions: int = 1_000_000
    max_bytes: int = 4 << 30

    def within(self, max_bytes: int) -> OwnerLimits:
        """With ``max_bytes`` where that is lower."""
        return self if max_bytes >= self.max_bytes else OwnerLimits(self.max_sessions, max_bytes)

    def used_ratio(self, usage: Usage) -> float:
        counts = max(usage.sessions, usage.documents)
        return max(counts / self.max_sessions, usage.bytes / self.max_bytes)

    def require_room(self, usage: Usage, *, sessions: int = 0, documents: int = 0, added_bytes: int = 0) -> None:
        """Raises OwnerFull where so much more does not fit."""
        if sessions and usage.sessions + sessions > self.max_sessions:
            raise OwnerFull(
                f"{usage.sessions} sessions, conversations and chains of responses, and the limit is {self.max_sessions}"
            )
        if documents and usage.documents + documents > self.max_sessions:
            raise OwnerFull(f"{usage.documents} responses, and the limit is {self.max_sessions}")
        if usage.bytes + added_bytes > self.max_bytes:
            raise OwnerFull(f"{usage.bytes} bytes, this needs {added_bytes} more, and the limit is {self.max_bytes}")


DEFAULT_LIMITS = OwnerLimits()

ENTRY_OVERHEAD_BYTES, SESSION_OVERHEAD_BYTES, DOCUMENT_OVERHEAD_BYTES = 64, 512, 256
"""Rough need of a store besides the bytes that it is given."""


def size_of(entries: Sequence[bytes]) -> int:
    return sum(map(len, entries)) + ENTRY_OVERHEAD_BYTES * len(entries)


class Corrupt(Exception):
    """The store holds something of this session that cannot be read. Other sessions are unaffected."""


class Fenced(Exception):
    """The claim is lost: another turn may have begun since, or the session was deleted."""


class Cursor(msgspec.Struct, frozen=True):
    """The part of a session that a replica has already. ``generation`` tells a session from an earlier one of the same name."""

    generation: str = ""
    head: int = 0
    """Number of entries. They are numbered from 1 without a gap, so this is also the number of the newest."""
    epoch: int = 0
    """Version of the view."""


EMPTY = Cursor()


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    sid: Sid
    owner: Tenant
    token: str
    """Names the turn: 128 random bits. Asking again with the same token begins no second turn."""
    cursor: Cursor = EMPTY
    creates: bool = True
    """Creates the session where it is absent. If False, the answer is None."""
    waits: bool = True
    """Takes a place in the line where another turn holds the claim."""
    max_waiting: int = 64
    lease_s: float
    lifetime_s: float
    """The session expires so long after this call; 0: never."""
    idempotency_key: str = ""
    """A turn that began with the same key, and has ended or still holds the claim, is this turn."""
    turn: int = 0
    """The number of the turn that ``entries`` were made for."""
    entries: Sequence[bytes] = ()
    """Appended only where the log ends at the cursor and this is that turn. Else the caller must read the log first."""
    record: bytes = b""
    """Record of the turn. ``append`` may replace it."""


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The caller holds the claim. The log, without the entries appended now, is what the replica had with ``tail`` after it.
    If ``starts_over``, the replica must drop what it had and ``tail`` is the log from its beginning: the replica knew another
    generation, or more entries than the store has, which was then set back to an older state."""

    generation: str
    fence: int
    turn: int
    head: int
    """Includes the entries appended now."""
    epoch: int
    view: bytes | None
    """None: the view that the replica knows is current, or there never was one."""
    starts_over: bool
    tail: Sequence[bytes]
    """From the end of the known log; not always up to the head."""
    appended: bool
    worker: str
    """Worker of the last turn; empty where there was none."""


class Busy(msgspec.Struct, frozen=True):
    """Another turn holds the claim. ``place``: in the line, from 1; 0: not in the line, which is full or was not wanted."""

    place: int


class Repeated(msgspec.Struct, frozen=True):
    """A turn with this idempotency key exists."""

    turn: int
    has_ended: bool
    record: bytes


class Append(msgspec.Struct, frozen=True, kw_only=True):
    sid: Sid
    owner: Tenant
    generation: str
    fence: int
    turn: int
    entries: Sequence[bytes]
    ends: bool
    """Ends the turn and its claim. Ending it again changes nothing, whoever holds the claim by then."""
    is_late: bool = False
    """Accepted also without the claim: a client was told of this end while the store was away. Only with ``ends``."""
    record: bytes | None = None
    worker: str = ""
    """Remembered for the next turn, unless empty."""
    lifetime_s: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A session as a reader gets it, without a claim. Fields that ``Begun`` has mean what they mean there."""

    generation: str
    head: int
    epoch: int
    view: bytes | None
    starts_over: bool
    tail: Sequence[bytes]
    attributes: bytes
    turns: int
    """Number of turns begun so far."""
    is_claimed: bool
    created_at: float
    """Unix time."""


class TurnRecord(msgspec.Struct, frozen=True):
    has_ended: bool
    record: bytes


class Store(Protocol):
    async def ping(self) -> None:
        """Raises StoreUnavailable where the store takes no write now."""
        ...

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        """None: there is no such session, and the call may not create it."""
        ...

    async def append(self, append: Append) -> int:
        """The log's new head. Raises Fenced."""
        ...

    async def renew(self, sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
        """Raises Fenced."""
        ...

    async def release(self, sid: Sid, owner: Tenant, fence: int) -> None:
        """Does nothing where the claim is lost already."""
        ...

    async def leave(self, sid: Sid, owner: Tenant, token: str) -> None: ...

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None: ...

    async def create(
        self, sid: Sid, owner: Tenant, *, entries: Sequence[bytes], attributes: bytes, turns: int, lifetime_s: float
    ) -> bool:
        """Creates a session with these entries and so many ended turns. False: it exists already."""
        ...

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        """False: the session does not exist."""
        ...

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        """Replaces the view of that epoch by one of the next. False: another call did, or the generation is another. Turns may
        go on meanwhile."""
        ...

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None: ...

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        """Deletes all of the session, whoever holds the claim. False: it did not exist."""
        ...

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        """Replaces a document of that key. 0 s: it never expires."""
        ...

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None: ...

    async def delete_document(self, key: Sid, owner: Tenant) -> bool: ...

    async def close(self) -> None: ...
