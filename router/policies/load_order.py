"""The load of a worker in requests: our own leases, and those of other replicas."""

from __future__ import annotations

from collections.abc import Callable

from router.core.fleet.figures import Figures


def measure_load(fleet: Figures) -> Callable[[int], float]:
    """Position → requests in flight from all replicas, plus this one, times the worker's slowdown."""
    own, foreign, slowdown = fleet.in_flight, fleet.foreign_in_flight, fleet.slowdown

    def load(position: int) -> float:
        return (own[position] + foreign[position] + 1) * slowdown[position]

    return load
