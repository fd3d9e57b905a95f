"""What a debugger shows of the router's long-lived objects says how full they are."""

from __future__ import annotations

from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules
from router.core.fleet.ring import Ring
from router.core.fleet.rules import FleetRules
from router.core.index.fingerprint import BLOCK_BYTES, fingerprint
from router.core.index.prefix_index import PrefixIndex
from router.core.request.poison_guard import PoisonGuard
from router.core.request.retry import RetryBudget
from router.core.tenants.queue import FairQueue, Waiter
from router.core.worker import WorkerAddress, WorkerName


def test_a_fleet_shows_its_workers_and_their_states() -> None:
    index = PrefixIndex(100, 10)
    fleet = Fleet(FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000), index)
    fleet.set_members([WorkerAddress("http", "a", 80)])
    (member,) = fleet.members()
    with fleet.lease(0, 12.0, 0.0, shows_first_token=True) as lease:
        assert repr(lease) == f"Lease({member.name}, 12 tokens)"
        assert repr(member) == f"Member({member.name} starting at 0, 1 leases)"
    assert repr(fleet) == f"Fleet({member.name} starting)"
    assert repr(fleet.catalog) == "Catalog(1 workers, 0 models served, 0 known)"
    index.record(0, fingerprint([bytes(2 * BLOCK_BYTES)], model="m"))
    assert repr(index) == "PrefixIndex(1 workers, 2 of 100 entries)"
    assert repr(Ring({member.name: 0})) == "Ring(1 workers)"


def test_queues_and_budgets_show_how_full_they_are() -> None:
    queue: FairQueue[Waiter] = FairQueue(2, 100)
    assert repr(queue) == "FairQueue(0 of 2 requests, 0 of 100 bytes)"
    budget = RetryBudget(0.2, 3)
    assert budget.take(1.0)
    assert repr(budget) == "RetryBudget(2.0 of 100 left, 1 under way)"
    guard = PoisonGuard(3)
    guard.add(WorkerName("w-1"), 0)
    assert repr(guard) == "PoisonGuard(1 of 3 deaths)"
