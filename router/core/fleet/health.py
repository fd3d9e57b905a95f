"""Decides when a failing worker is taken out, for how long, and how it comes back. ``NEXT`` has every transition. Pure:
``upstream.health_check`` probes the workers, and ``proxy.selection`` reports what became of requests.

Probes and requests are counted apart: a worker that drains answers its probes and fails its requests. An ejection lasts
``ejection_s``, and twice as long as the last one if the worker has not been well for four times that. Being slow is load, not
illness, and never ejects; nor do 429 and 503, which mean "busy". Whether an ejected worker is tried all the same, because no
other is left (panic mode), is decided in the catalog.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

STEADY = 4.0
"""A worker that was well for this many times its last ejection's length is ejected for the shortest time again."""


class WorkerState(Enum):
    STARTING = "starting"
    UP = "up"
    EJECTED = "ejected"
    ASLEEP = "asleep"
    """Its engine sleeps, as its metrics say. ``Member`` knows it; ``Health`` is never in this state."""

    __hash__ = object.__hash__


class Event(Enum):
    PROBE_ANSWERED = 0
    """For an ejected worker, once the ejection's time is over."""
    REQUEST_ANSWERED = 1
    FAILED = 2
    """A death, or as many failures in a row as the rules allow."""

    __hash__ = object.__hash__


NEXT = {
    (WorkerState.STARTING, Event.PROBE_ANSWERED): WorkerState.UP,
    (WorkerState.UP, Event.FAILED): WorkerState.EJECTED,
    (WorkerState.EJECTED, Event.PROBE_ANSWERED): WorkerState.UP,
    (WorkerState.EJECTED, Event.REQUEST_ANSWERED): WorkerState.UP,
}
"""Any other event leaves the state as it is."""


class Cause(Enum):
    """Why a worker was ejected: a label of the ejection counter."""

    DIED = "died"
    """It refused, reset or closed a connection, or sent bytes that are not HTTP."""
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
    """One worker's health. Every method takes the monotonic time; those named ``on_…`` return True if the state changed."""

    rules: HealthRules
    state: WorkerState = WorkerState.STARTING
    failed_requests: int = 0
    """In a row."""
    failed_probes: int = 0
    """In a row."""
    doublings: int = 0
    """How often the next ejection's length is doubled."""
    length_s: float = 0.0
    """Length of the last ejection."""
    ejected_until: float = 0.0
    returned_at: float | None = None
    since: float | None = None
    """When the state began; None until it was first probed."""
    ejections: Counter[Cause] = field(default_factory=Counter)

    def on_probe_answered(self, now: float) -> bool:
        self.failed_probes = 0
        is_due = self.state is not WorkerState.EJECTED or now >= self.ejected_until
        return is_due and self._apply(Event.PROBE_ANSWERED, now)

    def on_probe_failed(self, now: float) -> bool:
        self.failed_probes += 1
        return self.failed_probes >= self.rules.failures and self._fail(Cause.PROBE, now)

    def on_success(self, now: float) -> bool:
        self.failed_requests = 0
        return self._apply(Event.REQUEST_ANSWERED, now)

    def on_error_answer(self, now: float) -> bool:
        return self._on_failed_request(Cause.ERRORS, now, self.rules.failures)

    def on_timeout(self, now: float) -> bool:
        """Two are enough: each made a client wait as long as it may."""
        return self._on_failed_request(Cause.TIMEOUT, now, min(2, self.rules.failures))

    def on_death(self, now: float) -> bool:
        """One is enough: a dead process fails every request, and fast."""
        return self._fail(Cause.DIED, now)

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
        return self.failed_requests >= most and self._fail(cause, now)

    def _fail(self, cause: Cause, now: float) -> bool:
        if not self._apply(Event.FAILED, now):
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
        self.ejected_until = now + length
        return True

    def _apply(self, event: Event, now: float) -> bool:
        """True if the state changed."""
        before, after = self.state, NEXT.get((self.state, event))
        if after is None:
            return False
        self.state, self.since = after, now
        if before is WorkerState.EJECTED:
            self.failed_requests = self.failed_probes = 0
            self.returned_at = now
        return True
