"""When a worker is taken out for failing, for how long, and how it comes back.

              probe answers                    a death, or `failures` bad answers in a row
    STARTING ───────────────► UP ──────────────────────────────────────────────► EJECTED
                              ▲                                                     │
                              └── its time is over and a probe answers, or ─────────┘
                                  a request that had no other worker succeeds

An ejection lasts ``ejection_s``, doubled for each one that follows soon upon the last. Being slow is load, not illness,
and never ejects; nor do 429 and 503, which say "busy". Whether an ejected worker is tried all the same, because no
other is left, is the fleet's question (panic mode), not decided here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    STARTING = "starting"
    UP = "up"
    EJECTED = "ejected"


class Cause(Enum):
    """Why a worker was ejected: a label of the ejection counter."""

    DIED = "died"
    """It refused, reset or closed a connection, or spoke something that is not HTTP."""
    ERRORS = "errors"
    """It answered 500, 502 or 504 several times in a row. It may be draining: its probes can be fine."""
    TIMEOUT = "timeout"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class HealthRules:
    """Seconds, except ``failures`` (a count)."""

    failures: int = 3
    ejection_s: float = 1.0
    max_ejection_s: float = 60.0
    slow_start_s: float = 10.0


@dataclass(slots=True)
class Health:
    """One worker's. Every method takes the monotonic time and returns True if the state changed."""

    rules: HealthRules
    state: State = State.STARTING
    failures_in_a_row: int = 0
    ejections_in_a_row: int = 0
    ejected_until: float = 0.0
    returned_at: float | None = None
    ejections: Counter[Cause] = field(default_factory=Counter)

    def on_probe_answered(self, now: float) -> bool:
        if self.state is State.STARTING:
            self.state = State.UP
            return True
        if self.state is State.EJECTED and now >= self.ejected_until:
            return self._return(now)
        return False

    def on_probe_failed(self, now: float) -> bool:
        return self._on_failure(Cause.PROBE, now)

    def on_success(self, now: float) -> bool:
        self.failures_in_a_row = 0
        return self._return(now) if self.state is State.EJECTED else False

    def on_error_answer(self, now: float) -> bool:
        return self._on_failure(Cause.ERRORS, now)

    def on_timeout(self, now: float) -> bool:
        return self._on_failure(Cause.TIMEOUT, now)

    def on_death(self, now: float) -> bool:
        """One is enough: a process that is gone fails every request, and as fast as it can."""
        return self._eject(Cause.DIED, now)

    def slowdown(self, now: float) -> float:
        """≥ 1: falls from 10 to 1 within ``slow_start_s`` of the return, so that a cold worker is not flooded."""
        if self.returned_at is None:
            return 1.0
        share = (now - self.returned_at) / self.rules.slow_start_s if self.rules.slow_start_s else 1.0
        if share >= 1.0:
            self.returned_at = None
            return 1.0
        return 1.0 / max(share, 0.1)

    def _on_failure(self, cause: Cause, now: float) -> bool:
        self.failures_in_a_row += 1
        return self._eject(cause, now) if self.failures_in_a_row >= self.rules.failures else False

    def _eject(self, cause: Cause, now: float) -> bool:
        if self.state is not State.UP:
            return False
        if now - self.ejected_until > self.rules.max_ejection_s:
            self.ejections_in_a_row = 0
        length = min(self.rules.ejection_s * 2.0**self.ejections_in_a_row, self.rules.max_ejection_s)
        self.ejections_in_a_row += 1
        self.ejections[cause] += 1
        self.state = State.EJECTED
        self.ejected_until = now + length
        return True

    def _return(self, now: float) -> bool:
        self.state = State.UP
        self.failures_in_a_row = 0
        self.returned_at = now
        return True
