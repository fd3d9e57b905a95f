"""What owners have in Redis: noted here with each write, and brought to the store's own count now and then, since the count of
an owner and its sessions may be on two nodes. So it is rough: it is late by a moment, and what a dying router did not bring is
counted when the session is used next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice

from router.core.request.request import Tenant
from router.sessions.stores.contract import OwnerLimits, Usage

MAX_NOTED = 50_000
"""Sessions and documents; those beyond are counted when they are used next."""
NOTES_AT_ONCE = 200
"""That one call brings."""
LOOKED_UP = 20
"""Owners of which nothing is noted, and what has expired is to be found out, each time."""

Note = tuple[int, int]
"""Bytes (0: it is gone), and in how many milliseconds it expires (0: never)."""
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
        """A session or document has so many bytes now. What was added is believed until the store's count is known."""
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
        """All that is noted, by as many calls as it takes. What cannot be brought stays noted."""
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
            del self._usage[owner]  # and put last
            if usage != Usage():
                self._usage[owner] = usage
