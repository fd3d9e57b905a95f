"""Spares a server that does not answer, and those who ask it: after some failures in a row, calls are refused for a while.

Pure: told the time, and what became of the calls that it admitted; it starts none.

    closed ── max_failures in a row ──► open ── the pause is over ──► half-open: one call goes through
       ▲                                 ▲ ◄──── it fails: a longer pause ──── │
       └──────────────────────────────── it succeeds ─────────────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class BreakerState(IntEnum):
    """Its number is what a metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Patience:
    max_failures: int = 5
    """In a row."""
    min_pause_s: float = 0.25
    max_pause_s: float = 0.5
    """A pause is twice the one before it, up to this."""


class Breaker:
    """Times are monotonic seconds. Whoever was admitted says how it ended: exactly one of ``succeeded``, ``failed`` and
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
        """Takes note of it where that is the one call that tries whether the server is back."""
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
        """Of calls that began before the pause, late failures do not prolong it."""
        self._failures += 1
        if self._failures < self._patience.max_failures or (self._pause_s and not self._probes):
            return
        self._probes = False
        self._pause_s = min(self._pause_s * 2 or self._patience.min_pause_s, self._patience.max_pause_s)
        self._resumes_at = now + self._pause_s

    def abandoned(self) -> None:
        """Its caller left: nothing was learnt, and the next may try."""
        self._probes = False
