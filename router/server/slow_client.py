"""Decides when a client reads too slowly. Its unread bytes hold memory here, and a seat on its worker."""

from __future__ import annotations

from dataclasses import dataclass

from router.config.serving import LimitsConfig


@dataclass(frozen=True, slots=True)
class SlowClientRule:
    """In each ``within_s`` in which bytes wait for it, a client must read ``min_bytes``, ≥ 1, or all of them."""

    within_s: float
    min_bytes: float

    def is_too_slow(self, read_bytes: int) -> bool:
        """``read_bytes`` of the waiting bytes were read in ``within_s``, and more still wait."""
        return read_bytes < self.min_bytes


def slow_client_rule(limits: LimitsConfig) -> SlowClientRule:
    return SlowClientRule(limits.write_stall_s, max(1.0, limits.min_drain_bytes_per_s * limits.write_stall_s))
