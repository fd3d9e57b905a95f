"""The worker of the session's last turn."""

from __future__ import annotations

from router.core.fleet.facts import Facts
from router.policies.base import Ranking
from router.policies.ring_order import order_eligible


class SessionAffinity:
    """The session's last worker first, then the anchor's ring order.

    Formula: ``session_worker`` where it is eligible, else the ring's first. Inputs: ``session_worker``, ``anchor``, ``ring``,
    ``eligible``. Parameters: none. Complexity: O(n · log n) ring steps, for the whole order.
    Wrong under load: a hot session or a saturated worker is never left. Knows nothing of what two sessions share, nor
    of what the worker has evicted meanwhile. Another replica does not know the session's last worker and follows the ring.
    """

    name = "session_affinity"
    reasons = frozenset({"session", "ring"})

    def rank(self, facts: Facts) -> Ranking:
        order = order_eligible(facts)
        last = facts.session_worker
        if last is None or last not in order:
            return Ranking(order, "ring")
        order.remove(last)
        order.insert(0, last)
        return Ranking(order, "session")
