"""When a client reads too slowly to be waited for. What it has not read holds memory here, and a seat on its worker."""

from __future__ import annotations

from dataclasses import dataclass

from router.config.serving import LimitsConfig


@dataclass(frozen=True, slots=True)
class StallRule:
    """In each ``within_s`` that something waits for it, a client reads ``min_bytes``, ≥ 1, or all of it."""

    within_s: float
    min_bytes: float

    def is_too_slow(self, read_bytes: int) -> bool:
        """``read_bytes``: in so long, of what waited, while more did."""
        return read_bytes < self.min_bytes


def stall_rule(limits: LimitsConfig) -> StallRule:
    return StallRule(limits.write_stall_s, max(1.0, limits.min_drain_bytes_per_s * limits.write_stall_s))
