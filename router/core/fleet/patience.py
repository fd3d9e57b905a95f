"""How long a worker's silence counts as work. Slowness is load: a full worker, a parser that holds text back and a grammar that
compiles are silent, and well.

The decision falls when a deadline passes, from the worker's last polls. A worker whose counters stand still while it claims to
run shows no work, and neither does a worker whose last poll is old.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from router.core.fleet.load import LoadReport


class Silence(NamedTuple):
    """A worker's silence toward one request, in seconds."""

    lasted_s: float
    allowed_s: float
    """How long it may last if the worker shows no work."""
    queued_s: float
    """How long it may last if the request may wait for a seat after others that show no work; 0.0: it has its seat."""


class Signs(NamedTuple):
    """Signs of work in a worker's polls, in requests and seconds."""

    running: int
    waiting: int
    moved_since_s: float
    """The worker's token counters last moved within this time; inf: they were never seen to move."""
    still_s: float
    """How long the polls have found the counters unchanged."""
    fresh_s: float
    """How much longer the last poll is believed."""


def may_wait_s(silence: Silence, signs: Signs | None) -> float:
    """Seconds until the signs must be looked at again; 0.0: the silence is not work.

    Counters that moved within the silence may then stand still for ``allowed_s``. A request that may wait for a seat waits on
    while nothing runs, as when a grammar compiles or an adapter loads."""
    if signs is None or not (signs.running or signs.waiting):
        return 0.0
    more_s = silence.allowed_s - signs.still_s if signs.moved_since_s <= silence.lasted_s else 0.0
    if signs.waiting and silence.queued_s:
        more_s = max(more_s, silence.queued_s - silence.lasted_s if signs.running else inf)
    return max(0.0, min(more_s, signs.fresh_s))


@dataclass(slots=True)
class Work:
    """The signs of work in one worker's polls so far. Times are monotonic."""

    running: int = 0
    waiting: int = 0
    tokens: float | None = None
    """The sum of its counters of prompt and answer tokens, in the last poll."""
    asked_at: float = -inf
    polled_at: float = -inf
    moved_after: float = -inf
    """The counters moved between this time and ``moved_at``."""
    moved_at: float = -inf

    def on_poll(self, report: LoadReport, asked_at: float, now: float) -> None:
        """``asked_at``: when the worker was asked, so that the report is no older."""
        if report.tokens is not None and self.tokens is not None and report.tokens > self.tokens:
            self.moved_after, self.moved_at = self.asked_at, now
        self.running, self.waiting, self.tokens = report.running, report.waiting, report.tokens
        self.asked_at, self.polled_at = asked_at, now

    def signs(self, now: float, stale_s: float) -> Signs | None:
        """None if the last poll is older than ``stale_s``."""
        fresh_s = self.polled_at + stale_s - now
        if fresh_s < 0.0:
            return None
        return Signs(self.running, self.waiting, now - self.moved_after, self.polled_at - self.moved_at, fresh_s)
