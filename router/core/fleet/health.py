"""When a worker is taken out for failing, for how long, and how it comes back.

              probe answers            a death, or `failures` bad answers or probes in a row
    STARTING ───────────────► UP ──────────────────────────────────────────────► EJECTED
                              ▲                                                     │
                              └── its time is over and a probe answers, or ─────────┘
                                  a request succeeds there all the same

Probes and requests are counted apart: a worker that drains answers its probes and fails its requests. An ejection lasts
``ejection_s``, and twice as long as the last if the worker had not been well for four times that. Being slow is load,
not illness, and never ejects; nor do 429 and 503, which say "busy". Whether an ejected worker is tried all the same,
because no other is left, is the fleet's question (panic mode), not decided here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

STEADY = 4.0
"""A worker that was well for so many ejections' length has done with whatever took it out."""


class WorkerState(Enum):
    STARTING = "starting"
    UP = "up"
    EJECTED = "ejected"
    ASLEEP = "asleep"
    """Its engine sleeps, as its metrics say: the fleet's to know, and no state of ``Health``."""


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
    """One worker's. Every method takes the monotonic time; those named ``on_…`` return True if the state changed."""

    rules: HealthRules
    state: WorkerState = WorkerState.STARTING
    failed_requests: int = 0
    """In a row, as are the next two."""
    failed_probes: int = 0
    doublings: int = 0
    """Of the next ejection's length; no more than it takes to reach the longest."""
    length_s: float = 0.0
    """Of the last ejection."""
    ejected_until: float = 0.0
    returned_at: float | None = None
    since: float | None = None
    """When the state began; None until that was seen."""
    ejections: Counter[Cause] = field(default_factory=Counter)

    def on_probe_answered(self, now: float) -> bool:
        self.failed_probes = 0
        if self.state is WorkerState.STARTING:
            self.state, self.since = WorkerState.UP, now
            return True
        return self._return(now) if self.state is WorkerState.EJECTED and now >= self.ejected_until else False

    def on_probe_failed(self, now: float) -> bool:
        self.failed_probes += 1
        return self.failed_probes >= self.rules.failures and self._eject(Cause.PROBE, now)

    def on_success(self, now: float) -> bool:
        self.failed_requests = 0
        return self._return(now) if self.state is WorkerState.EJECTED else False

    def on_error_answer(self, now: float) -> bool:
        return self._on_failed_request(Cause.ERRORS, now, self.rules.failures)

    def on_timeout(self, now: float) -> bool:
        """Two are enough: each has cost a client all its patience."""
        return self._on_failed_request(Cause.TIMEOUT, now, min(2, self.rules.failures))

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

    def _on_failed_request(self, cause: Cause, now: float, most: int) -> bool:
        self.failed_requests += 1
        return self.failed_requests >= most and self._eject(cause, now)

    def _eject(self, cause: Cause, now: float) -> bool:
        if self.state is not WorkerState.UP:
            return False
        if now - self.ejected_until > STEADY * self.length_s:
            self.doublings = 0
        length = self.rules.ejection_s * 2.0**self.doublings
        if length < self.rules.max_ejection_s:
            self.doublings += 1
        else:
            length = self.rules.max_ejection_s
        self.length_s = length
        self.ejections[cause] += 1
        self.state, self.since = WorkerState.EJECTED, now
        self.ejected_until = now + length
        return True

    def _return(self, now: float) -> bool:
        self.state, self.since = WorkerState.UP, now
        self.failed_requests = self.failed_probes = 0
        self.returned_at = now
        return True
