"""How busy a worker is in requests: our own leases and what other replicas have there."""

from __future__ import annotations

from collections.abc import Callable

from router.core.fleet.figures import Figures


def measure_load(fleet: Figures) -> Callable[[int], float]:
    """Position → requests in flight there from all replicas, this one more included, times the worker's slowdown."""
    own, foreign, slowdown = fleet.in_flight, fleet.foreign_in_flight, fleet.slowdown

    def load(position: int) -> float:
        return (own[position] + foreign[position] + 1) * slowdown[position]

    return load
