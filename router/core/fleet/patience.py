"""How long a worker's silence is taken for work. Slowness is load: a full worker, a parser that holds its text back and a
grammar that compiles are silent, and well.

A worker is asked for nothing here: what its polls said of it decides, at the moment that a deadline passes. A worker whose
counters stand still while it claims to run shows no work, and neither does one whose last poll is old.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from router.core.fleet.load import LoadReport


class Silence(NamedTuple):
    """Of a worker toward one request, in seconds."""

    lasted_s: float
    allowed_s: float
    """How long it may last where the worker shows no work."""
    queued_s: float
    """How long it may last where the request may wait for a seat behind others that show none; 0.0: it has its seat."""


class Signs(NamedTuple):
    """Of work, as a worker's polls show it; in requests and seconds."""

    running: int
    waiting: int
    moved_since_s: float
    """The worker's token counters last moved within so many seconds; inf: they were never seen to."""
    still_s: float
    """How long the polls have found the counters unchanged since."""
    fresh_s: float
    """How long the last poll is believed yet."""


def may_wait_s(silence: Silence, signs: Signs | None) -> float:
    """For how many seconds more a silence is taken for work, until the signs are to be looked at again; 0.0: it is none.

    Counters count if they moved within the silence: then it is theirs to stand still as long as the request's worker may say
    nothing. A request that may wait for a seat waits on where nothing runs, as for a grammar or an adapter."""
    if signs is None or not (signs.running or signs.waiting):
        return 0.0
    more_s = silence.allowed_s - signs.still_s if signs.moved_since_s <= silence.lasted_s else 0.0
    if signs.waiting and silence.queued_s:
        more_s = max(more_s, silence.queued_s - silence.lasted_s if signs.running else inf)
    return max(0.0, min(more_s, signs.fresh_s))


@dataclass(slots=True)
class Work:
    """What one worker's polls have shown of its work so far. Times are monotonic."""

    running: int = 0
    waiting: int = 0
    tokens: float | None = None
    """What its counters of prompts' and answers' tokens say together, in the last poll."""
    asked_at: float = -inf
    polled_at: float = -inf
    moved_after: float = -inf
    """The counters moved between this time and ``moved_at``."""
    moved_at: float = -inf

    def on_poll(self, report: LoadReport, asked_at: float, now: float) -> None:
        """``asked_at``: when the worker was asked for its report, which is no older."""
        if report.tokens is not None and self.tokens is not None and report.tokens > self.tokens:
            self.moved_after, self.moved_at = self.asked_at, now
        self.running, self.waiting, self.tokens = report.running, report.waiting, report.tokens
        self.asked_at, self.polled_at = asked_at, now

    def signs(self, now: float, stale_s: float) -> Signs | None:
        """None where the last poll is older than ``stale_s``."""
        fresh_s = self.polled_at + stale_s - now
        if fresh_s < 0.0:
            return None
        return Signs(self.running, self.waiting, now - self.moved_after, self.polled_at - self.moved_at, fresh_s)
