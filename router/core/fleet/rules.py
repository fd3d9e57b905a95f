"""Values that the fleet starts from, before it has learnt its own."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.fleet.health import HealthRules


@dataclass(frozen=True, slots=True)
class FleetRules:
    """Rates in tokens/s, ages in s."""

    health: HealthRules
    initial_prefill_rate: float
    initial_bytes_per_token: float
    stale_load_s: float
    default_cache_tokens: int
    declared_models: frozenset[str] = frozenset()
    """Models that exist, whether or not a worker lists them."""
