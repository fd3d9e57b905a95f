"""How many bytes the router holds for clients: bodies while they arrive, decoded values, replies, answers not yet read.

Each holding counts against one budget until it is released. A tenant may hold as much as is still free: alone it gets half of
the budget, two get a third each, and a newcomer always finds room. The rule is the dynamic
threshold of Choudhury and Hahne ("Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM Transactions on
Networking 6(2), 1998) with alpha = 1. Clients without keys share the whole budget. Pure.
"""

from __future__ import annotations

from collections import Counter

from router.core.errors import Overloaded
from router.core.request.request import NO_TENANT, Tenant

UNCOUNTED_BYTES = 4 << 10
"""Bodies and answers up to this size belong to the cost of a connection, and are not counted."""

BODY, DECODED, REPLY, UNREAD = KINDS = ("body", "decoded", "reply", "unread")
"""Kinds of held bytes: values of a metric's label."""


class MemoryFull(Overloaded):
    """The budget has no room for the bytes of a request."""


class MemoryBudget:
    """``bytes``: held now. ``refusals``: how often a holding could not grow, by kind. ``has_tenants``: requests without a
    tenant are strangers, which together may hold as much as one tenant."""

    def __init__(self, max_bytes: int, *, has_tenants: bool = False) -> None:
        self.max_bytes = max_bytes
        self._has_tenants = has_tenants
        self.bytes = 0
        self.by_kind: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.refusals: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._by_tenant: Counter[Tenant] = Counter()

    def hold(self, tenant: Tenant) -> Holding:
        """An empty holding. Call its ``release`` in the end."""
        return Holding(self, tenant)

    def held_by(self, tenant: Tenant) -> int:
        return self._by_tenant[tenant]

    def take(self, tenant: Tenant, kind: str, count: int) -> None:
        """Raises MemoryFull, and then takes nothing."""
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
        """Bytes that it may hold while no other holds any."""
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
    """The bytes that one request holds. It costs about 1 µs in all."""

    __slots__ = ("_budget", "_held", "owner")

    def __init__(self, budget: MemoryBudget, owner: Tenant) -> None:
        """``owner`` may be set as long as the holding is empty."""
        self._budget = budget
        self.owner = owner
        self._held: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Holding({self.owner!r}, {self._held})"

    def __getitem__(self, kind: str) -> int:
        """Bytes of one kind."""
        return self._held.get(kind, 0)

    def grow(self, kind: str, count: int) -> None:
        """Call it before the bytes are kept. Raises MemoryFull, and then grows by nothing."""
        try:
            self._budget.take(self.owner, kind, count)
        except MemoryFull:
            if sum(self._held.values()) + count <= self._budget.most_of(self.owner):
                raise
            message = "the request and its answer take more of the router's memory than one client may ever hold"
            raise MemoryFull(f"{message}: send less, or ask for less", retryable=False) from None
        self._held[kind] = self._held.get(kind, 0) + count

    def resize(self, kind: str, count: int) -> None:
        """Grow or shrink to ``count`` bytes. Raises MemoryFull."""
        change = count - self._held.get(kind, 0)
        if change > 0:
            self.grow(kind, change)
        elif change:
            self._budget.release_later(self.owner, kind, -change)
            self._held[kind] = count

    def release(self) -> None:
        """Release all bytes. The holding may be used again."""
        for kind, count in self._held.items():
            if count:
                self._budget.release_later(self.owner, kind, count)
        self._held.clear()
