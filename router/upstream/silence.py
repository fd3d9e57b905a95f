"""Decides how long a silent worker is waited for. Pure. Times are seconds, moments are on the loop's clock."""

from __future__ import annotations

from math import inf

from router.core.fleet.patience import Signs, may_wait_s
from router.core.fleet.patience import Silence as Lasted
from router.core.request.attempt import WorkerSilent, WorkerSlow


class Silence:
    """The silence of one worker on one connection."""

    __slots__ = ("_longest_s", "_queued_s", "allowed_s", "due_at", "heard_at")

    def __init__(self) -> None:
        self.allowed_s = 0.0
        """How long it may last if nothing shows that the worker is at work."""
        self.heard_at = 0.0
        """When the worker sent something last."""
        self.due_at = inf
        """When ``extend`` must be called."""
        self._queued_s = 0.0
        self._longest_s = 0.0

    def begin(self, now: float, allowed_s: float, queued_s: float, longest_s: float) -> None:
        """``queued_s``: how long the request may wait in the worker's queue. ``longest_s``: the longest silence of a worker
        that is at work; 0.0 allows none beyond ``allowed_s``."""
        self.allowed_s, self._queued_s, self._longest_s = allowed_s, queued_s, longest_s
        self.hear(now)

    def begin_stream(self, now: float, allowed_s: float) -> None:
        """``allowed_s``: the longest gap between two reads."""
        self.allowed_s, self._queued_s = allowed_s, 0.0
        self.hear(now)

    def hear(self, now: float) -> None:
        self.heard_at = now
        self.due_at = now + self.allowed_s

    def is_overdue(self, now: float) -> bool:
        return now - self.heard_at > self.allowed_s

    def extend(self, now: float, signs: Signs | None) -> WorkerSilent | None:
        """Move ``due_at`` while ``signs`` show that the worker is at work. Returns the failure if they do not, or if the
        silence has lasted for the longest time."""
        lasted_s = now - self.heard_at
        more_s = may_wait_s(Lasted(lasted_s, self.allowed_s, self._queued_s), signs)
        left_s = self._longest_s - lasted_s
        if more_s <= 0.0:
            return WorkerSilent("the worker sent nothing in time")
        if left_s <= 0.0:
            return WorkerSlow("the worker is at work, and sent nothing in time")
        self.due_at = now + min(more_s, left_s)
        return None
