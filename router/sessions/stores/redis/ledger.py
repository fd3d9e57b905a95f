"""Counts what owners have in Redis. Each write is noted here, and the notes are brought to Redis now and then, since the count
of an owner and its sessions may be on two nodes. The count is rough: it is late by a moment, and what a dying router did not
bring is counted when the session is used next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice

from router.core.request.request import Tenant
from router.sessions.stores.contract import OwnerFull, OwnerLimits, Usage

MAX_NOTED = 50_000
"""Sessions and documents. More are counted when they are used next."""
NOTES_AT_ONCE = 200
"""Notes of one call."""
LOOKED_UP = 20
"""Owners without a note whose count is read each time, to learn what has expired."""

Note = tuple[int, int]
"""Bytes (0: it is deleted), and milliseconds until it expires (0: never)."""
Bring = Callable[[Tenant, Sequence[str | int]], Awaitable[Usage]]


class Ledger:
    def __init__(self, limits: OwnerLimits) -> None:
        self._limits = limits
        self._usage: dict[Tenant, Usage] = {}
        self._notes: dict[Tenant, dict[str, Note]] = {}
        self.noted = 0

    @property
    def usage(self) -> Mapping[Tenant, Usage]:
        return self._usage

    def require_room(self, owner: Tenant, *, sessions: int = 0, documents: int = 0, added_bytes: int = 0) -> None:
        """Raises OwnerFull."""
        usage = self._usage.get(owner, Usage())
        self._limits.require_room(usage, sessions=sessions, documents=documents, added_bytes=added_bytes)

    def is_full(self, owner: Tenant, *, sessions: int = 0, documents: int = 0, added_bytes: int = 0) -> bool:
        try:
            self.require_room(owner, sessions=sessions, documents=documents, added_bytes=added_bytes)
        except OwnerFull:
            return True
        return False

    def note(
        self,
        owner: Tenant,
        member: str,
        total_bytes: int,
        lifetime_ms: int,
        *,
        sessions: int = 0,
        documents: int = 0,
        added_bytes: int = 0,
    ) -> None:
        """A session or document has so many bytes now. The additions count until the count in Redis is known."""
        notes = self._notes.setdefault(owner, {})
        if member not in notes:
            if self.noted >= MAX_NOTED:
                return
            self.noted += 1
        notes[member] = (total_bytes, lifetime_ms)
        usage = self._usage.get(owner, Usage())
        self._usage[owner] = Usage(
            usage.sessions + sessions, usage.documents + documents, max(0, usage.bytes + added_bytes)
        )

    async def bring(self, bring: Bring) -> None:
        """Brings all notes to Redis, in as many calls as it takes. Notes that cannot be brought stay."""
        for owner in [*self._notes]:
            while some := list(islice(self._notes[owner].items(), NOTES_AT_ONCE)):
                told = [part for member, note in some for part in (member, *note)]
                usage = await bring(owner, told)
                self._usage[owner] = usage
                for member, note in some:
                    if self._notes[owner].get(member) == note:
                        del self._notes[owner][member]
                        self.noted -= 1
            del self._notes[owner]
        for owner in list(islice(self._usage, LOOKED_UP)):
            usage = await bring(owner, ())
            del self._usage[owner]  # the next look-up begins with others
            if usage != Usage():
                self._usage[owner] = usage
