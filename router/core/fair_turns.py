"""A few seats, and a line for each tenant: whoever waits goes in the order of its own tenant, and tenants take turns. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from router.core.request import Tenant

W = TypeVar("W")


class FairTurns(Generic[W]):
    """``seats``: how many may be at work at once. Every call takes O(1), but for ``leave``, which is O(waiters of a tenant)."""

    def __init__(self, seats: int) -> None:
        self.seats = seats
        self.taken = 0
        self._lines: OrderedDict[Tenant, deque[W]] = OrderedDict()

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._lines.values()))

    def take(self) -> bool:
        """A seat at once, where one is free: nobody waits then."""
        if self.taken >= self.seats:
            return False
        self.taken += 1
        return True

    def wait(self, tenant: Tenant, waiter: W) -> None:
        self._lines.setdefault(tenant, deque()).append(waiter)

    def leave(self, tenant: Tenant, waiter: W) -> None:
        """It waits no longer, whether it has been called or not."""
        line = self._lines.get(tenant)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[tenant]

    def give_back(self) -> W | None:
        """A seat is free: the waiter that gets it, or None where nobody waits."""
        if not self._lines:
            self.taken -= 1
            return None
        tenant, line = self._lines.popitem(last=False)
        waiter = line.popleft()
        if line:
            self._lines[tenant] = line  # behind the others
        return waiter
