"""How many bytes the router holds for others: bodies while they come, decoded values, replies, answers that are not read yet.

Each holding counts against one budget while it grows, and is given back when it is let go. A tenant may hold as much as is
still free: alone it gets half of the budget, two get a third each, and a newcomer always finds room. The rule is the dynamic
threshold of Choudhury and Hahne ("Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM Transactions on
Networking 6(2), 1998) with alpha = 1. Clients that cannot be told apart (no keys) share the whole budget. Pure.
"""

from __future__ import annotations

from collections import Counter

from router.core.errors import Overloaded
from router.core.request.request import NO_TENANT, Tenant

UNCOUNTED_BYTES = 4 << 10
"""Bodies and answers up to here are part of what a connection takes, and not counted by themselves."""

BODY, DECODED, REPLY, UNREAD = KINDS = ("body", "decoded", "reply", "unread")
"""What is held. Label values of a metric."""


class MemoryFull(Overloaded):
    """There is no room for what a request needs to hold."""


class MemoryBudget:
    """``bytes``: held now. ``refusals``: how often a holding could not grow, by kind. ``has_tenants``: those without one are
    strangers, who have together no more than a tenant has."""

    def __init__(self, max_bytes: int, *, has_tenants: bool = False) -> None:
        self.max_bytes = max_bytes
        self._has_tenants = has_tenants
        self.bytes = 0
        self.by_kind: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.refusals: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._by_tenant: Counter[Tenant] = Counter()

    def hold(self, tenant: Tenant) -> Holding:
        """A holding of nothing yet. Its owner calls ``release`` in the end."""
        return Holding(self, tenant)

    def held_by(self, tenant: Tenant) -> int:
        return self._by_tenant[tenant]

    def take(self, tenant: Tenant, kind: str, count: int) -> None:
        """Raises MemoryFull, and then nothing was taken."""
        free_bytes = self.max_bytes - self.bytes - count
        if free_bytes < 0:
            self.refusals[kind] += 1
            raise MemoryFull("the router holds as much for its clients as it may: try again", retry_after_s=1)
        if self._is_bounded(tenant) and self._by_tenant[tenant] + count > free_bytes:
            self.refusals[kind] += 1
            message = (
                "your other requests hold as much of the router's memory as they may: try again when some have ended"
            )
            raise MemoryFull(message, retry_after_s=1)
        self.release_later(tenant, kind, -count)

    def most_of(self, tenant: Tenant) -> int:
        """What it may hold while nobody else holds anything."""
        return self.max_bytes // 2 if self._is_bounded(tenant) else self.max_bytes

    def _is_bounded(self, tenant: Tenant) -> bool:
        return self._has_tenants or tenant != NO_TENANT

    def release_later(self, tenant: Tenant, kind: str, count: int) -> None:
        self.bytes -= count
        self.by_kind[kind] -= count
        self._by_tenant[tenant] -= count
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


class Holding:
    """What one request holds. Cheap enough for each: about 1 µs in all."""

    __slots__ = ("_budget", "_held", "owner")

    def __init__(self, budget: MemoryBudget, owner: Tenant) -> None:
        """``owner`` may be set until anything is held."""
        self._budget = budget
        self.owner = owner
        self._held: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Holding({self.owner!r}, {self._held})"

    def __getitem__(self, kind: str) -> int:
        """Bytes of one kind."""
        return self._held.get(kind, 0)

    def grow(self, kind: str, count: int) -> None:
        """Before the bytes are kept. Raises MemoryFull, and then it is as large as before."""
        try:
            self._budget.take(self.owner, kind, count)
        except MemoryFull:
            if sum(self._held.values()) + count <= self._budget.most_of(self.owner):
                raise
            message = "the request and its answer take more of the router's memory than one client may ever hold"
            raise MemoryFull(f"{message}: send less, or ask for less", retryable=False) from None
        self._held[kind] = self._held.get(kind, 0) + count

    def resize(self, kind: str, count: int) -> None:
        """As large as that. Raises MemoryFull."""
        change = count - self._held.get(kind, 0)
        if change > 0:
            self.grow(kind, change)
        elif change:
            self._budget.release_later(self.owner, kind, -change)
            self._held[kind] = count

    def release(self) -> None:
        """All of it; it may be used again."""
        for kind, count in self._held.items():
            if count:
                self._budget.release_later(self.owner, kind, count)
        self._held.clear()
