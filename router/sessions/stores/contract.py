"""What a store of sessions promises, whichever it is. All of them pass one suite of tests.

A session is a log of entries that is only ever appended to, and a little state beside it. A store keeps bytes: what is in an
entry, a view, a turn's record or a document it never reads. Every call is one round trip, and atomic: it happens wholly or
not at all.

    begin         take the claim, be told what one does not have of the log, append what the turn brings
    append        more of the turn, by whoever holds the claim; its last call ends the turn
    renew         the claim, of a turn that takes long
    release       the claim, of a turn that came to nothing
    leave         the line of those who wait for the claim, or the claim of a ``begin`` whose answer never came

*Claim.* One turn at a time may write. A claim has a fence, a number that grows with every claim and that no session of the
same name had before, and a lease: who lets it run out may lose it to the next, and then can write no more. *Line.* Who begins
while another holds the claim is put in the session's line, and asks again with the same token until it is first; who has not
asked for ``LINE_PATIENCE_S`` loses its place.
*Turns* are numbered from 1. A turn has ended when an ``append`` said so; one that never did is for the readers to leave out.
*Owner.* Every session and document belongs to a tenant; to any other it is absent, and can be neither created nor replaced.
*Room.* An owner has a bounded number of sessions, of documents, and of bytes. Counted with what the store needs besides, and
roughly; the end of a turn that has begun always fits.
*Tails.* What a call returns of a log has about ``MAX_TAIL_BYTES`` at most: whoever needs the rest asks ``load`` for it.
*Time.* Leases and lifetimes are measured by the store's own clock. All that belongs to a session lives as long as the session.

Raises StoreUnavailable (it cannot be told what the store holds; Full, where it is out of room; Crowded, where the owner's own
calls are in the way), OwnerFull (the owner has no room left) or Corrupt (it holds what nobody wrote); nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from router.core.request.request import Sid as Sid
from router.core.request.request import Tenant

LINE_PATIENCE_S = 3.0

MAX_TAIL_BYTES = 4 << 20
"""A few milliseconds' reading, for which others wait. One entry is always among it."""


class StoreUnavailable(Exception):
    """Unreachable, too slow, or refusing writes. What it holds is unknown, which is not the same as nothing."""

    was_asked = True
    """False: it was spared the call, so nothing of it can have happened."""


class Full(StoreUnavailable):
    """There is no room to write, in its memory or on its disk. Nothing of the call has happened."""

    was_asked = False


class Crowded(StoreUnavailable):
    """The owner has so many calls under way that this one found no turn in time."""

    was_asked = False


class OwnerFull(Exception):
    """The owner has as much as it may. The message says of what, and how much that is."""


class Usage(msgspec.Struct, frozen=True):
    """What an owner has."""

    sessions: int = 0
    documents: int = 0
    bytes: int = 0


class OwnerLimits(msgspec.Struct, frozen=True):
    """What one owner may have of a store. ``max_sessions`` bounds sessions and documents, each."""

    max_sessions: int = 1_000_000
    max_bytes: int = 4 << 30

    def within(self, max_bytes: int) -> OwnerLimits:
        """The lower of both bounds of bytes."""
        return self if max_bytes >= self.max_bytes else OwnerLimits(self.max_sessions, max_bytes)

    def used_ratio(self, usage: Usage) -> float:
        counts = max(usage.sessions, usage.documents)
        return max(counts / self.max_sessions, usage.bytes / self.max_bytes)

    def require_room(self, usage: Usage, *, sessions: int = 0, documents: int = 0, added_bytes: int = 0) -> None:
        """For so much more. Raises OwnerFull."""
        if sessions and usage.sessions + sessions > self.max_sessions:
            raise OwnerFull(
                f"{usage.sessions} sessions, conversations and chains of responses, which is the most there may be"
            )
        if documents and usage.documents + documents > self.max_sessions:
            raise OwnerFull(f"{usage.documents} responses, which is the most there may be")
        if usage.bytes + added_bytes > self.max_bytes:
            raise OwnerFull(
                f"{usage.bytes} bytes, and this needs {added_bytes} more than {self.max_bytes} has room for"
            )


DEFAULT_LIMITS = OwnerLimits()

ENTRY_OVERHEAD_BYTES, SESSION_OVERHEAD_BYTES, DOCUMENT_OVERHEAD_BYTES = 64, 512, 256
"""What a store needs beside the bytes that it was given, roughly."""


def size_of(entries: Sequence[bytes]) -> int:
    return sum(map(len, entries)) + ENTRY_OVERHEAD_BYTES * len(entries)


class Corrupt(Exception):
    """What the store holds of this session cannot be read; others are well."""


class Fenced(Exception):
    """The claim was lost: another may have begun since, or the session was deleted."""


class Cursor(msgspec.Struct, frozen=True):
    """What a replica holds of a session already. ``generation`` tells a session from one of the same name before it."""

    generation: str = ""
    head: int = 0
    """How many entries: they are numbered from 1 without a gap, so this is also the newest's number."""
    epoch: int = 0
    """Of the view."""


EMPTY = Cursor()


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    sid: Sid
    owner: Tenant
    token: str
    """Who asks: one for each turn, of 128 random bits; asking again with it is no second turn."""
    cursor: Cursor = EMPTY
    creates: bool = True
    """A session that is absent is created; otherwise that is the answer."""
    waits: bool = True
    """Where another holds the claim, take a place in the line."""
    max_waiting: int = 64
    lease_s: float
    lifetime_s: float
    """Of the session from now on; 0: for ever."""
    idempotency_key: str = ""
    """A turn that was begun with the same one, and has ended or still holds the claim, is this turn."""
    turn: int = 0
    """The number that ``entries`` were made for."""
    entries: Sequence[bytes] = ()
    """Appended only where nothing but ``known`` is in the log, and this is that turn: else it must be read first."""
    record: bytes = b""
    """Of the turn, which ``append`` may replace."""


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The claim is held. The log, without what was appended now, is what the replica had and ``tail`` behind it; all of the
    log is in ``tail`` where ``starts_over``, since another generation was known, or more of this one than there is: a store
    that was set back to an older state."""

    generation: str
    fence: int
    turn: int
    head: int
    """With what was appended now."""
    epoch: int
    view: bytes | None
    """None where the known one holds, and where there never was one."""
    starts_over: bool
    tail: Sequence[bytes]
    """From where the known log ends; not always up to the head."""
    appended: bool
    worker: str
    """Its last turn's; empty where there was none."""


class Busy(msgspec.Struct, frozen=True):
    """Another holds the claim. ``place``: in the line, from 1; 0: in none, for it is full or was not wanted."""

    place: int


class Repeated(msgspec.Struct, frozen=True):
    """The idempotency key's turn is there already."""

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
    """The turn has ended, and the claim with it. Doing that again changes nothing, whoever holds the claim by then."""
    is_late: bool = False
    """The claim may be lost by now: what was acknowledged to a client while the store was away. Only where it ``ends``."""
    record: bytes | None = None
    worker: str = ""
    """Kept for the next turn, unless empty."""
    lifetime_s: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """As ``Begun``, without a claim."""

    generation: str
    head: int
    epoch: int
    view: bytes | None
    starts_over: bool
    tail: Sequence[bytes]
    attributes: bytes
    turns: int
    """Begun so far."""
    is_claimed: bool
    created_at: float
    """Unix time."""


class TurnRecord(msgspec.Struct, frozen=True):
    has_ended: bool
    record: bytes


class Store(Protocol):
    async def ping(self) -> None:
        """Would it take a write now?"""
        ...

    async def begin(self, begin: Begin) -> Begun | Busy | Repeated | None:
        """None: there is no such session, and none was to be created."""
        ...

    async def append(self, append: Append) -> int:
        """The log's new head. Raises Fenced."""
        ...

    async def renew(self, sid: Sid, owner: Tenant, fence: int, lease_s: float) -> None:
        """Raises Fenced."""
        ...

    async def release(self, sid: Sid, owner: Tenant, fence: int) -> None:
        """Nothing where the claim is lost already."""
        ...

    async def leave(self, sid: Sid, owner: Tenant, token: str) -> None: ...

    async def load(self, sid: Sid, owner: Tenant, cursor: Cursor) -> Loaded | None: ...

    async def create(
        self, sid: Sid, owner: Tenant, *, entries: Sequence[bytes], attributes: bytes, turns: int, lifetime_s: float
    ) -> bool:
        """A session that begins with these entries, of so many turns that have ended. False: there is one."""
        ...

    async def set_attributes(self, sid: Sid, owner: Tenant, attributes: bytes) -> bool:
        """False: there is no such session."""
        ...

    async def commit_view(self, sid: Sid, owner: Tenant, generation: str, epoch: int, view: bytes) -> bool:
        """Replace the view of that epoch by one of the next. False: another did, or the session is not that one any more.
        Turns may go on meanwhile."""
        ...

    async def read_turn(self, sid: Sid, owner: Tenant, turn: int) -> TurnRecord | None: ...

    async def delete(self, sid: Sid, owner: Tenant) -> bool:
        """All of it, whoever holds the claim. False: there was none."""
        ...

    async def put_document(self, key: Sid, owner: Tenant, body: bytes, lifetime_s: float) -> None:
        """Replaces; 0 s: for ever."""
        ...

    async def get_document(self, key: Sid, owner: Tenant) -> bytes | None: ...

    async def delete_document(self, key: Sid, owner: Tenant) -> bool: ...

    async def close(self) -> None: ...
