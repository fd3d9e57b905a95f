"""A circuit breaker: after some failures in a row, calls to a server are refused for a while. Pure.

closed ── max_failures in a row ──► open ── the pause is over ──► half-open: one call goes through
   ▲                                 ▲ ◄──── it fails: a longer pause ──── │
   └──────────────────────────────── it succeeds ─────────────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class BreakerState(IntEnum):
    """The number is shown by a metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Patience:
    max_failures: int = 5
    """Failures in a row that open the breaker."""
    min_pause_s: float = 0.25
    max_pause_s: float = 0.5
    """Each pause is twice as long as the last, up to this."""


class Breaker:
    """Times are monotonic seconds. Each admitted call reports its end: exactly one of ``succeeded``, ``failed`` and
    ``abandoned``."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failures = 0
        self._pause_s = 0.0
        self._resumes_at = 0.0
        self._probes = False

    def state(self, now: float) -> BreakerState:
        if not self._pause_s:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._resumes_at and not self._probes else BreakerState.HALF_OPEN

    def admits(self, now: float) -> bool:
        """After a pause, admits one call that tries whether the server is back."""
        if not self._pause_s:
            return True
        if self._probes or now < self._resumes_at:
            return False
        self._probes = True
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._pause_s = 0.0
        self._probes = False

    def failed(self, now: float) -> None:
        """Late failures of calls that began before a pause do not prolong it."""
        self._failures += 1
        if self._failures < self._patience.max_failures or (self._pause_s and not self._probes):
            return
        self._probes = False
        self._pause_s = min(self._pause_s * 2 or self._patience.min_pause_s, self._patience.max_pause_s)
        self._resumes_at = now + self._pause_s

    def abandoned(self) -> None:
        """The call was cancelled: nothing was learnt, and the next call may try."""
        self._probes = False
