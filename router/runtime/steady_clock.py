"""Unix time that does not jump ahead, so that nothing expires because a clock was wrong for a moment."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("warmroute.sessions")

JUMP_S = 60.0
"""A larger lead of the wall clock over the monotonic one, between two readings, is a jump."""
BELIEVED_AFTER_S = 3600.0
"""A clock that jumped ahead is trusted again after this time."""


class SteadyClock:
    """Follows the wall clock, also back. It goes ahead only as fast as the monotonic clock, until the wall clock is trusted."""

    def __init__(self, wall_clock: Callable[[], float], clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._clock = clock
        self._seen = (wall_clock(), clock())
        """Trusted Unix time, and the monotonic clock at that moment."""
        self._jumped_at: float | None = None

    def __call__(self) -> float:
        wall, now = self._wall_clock(), self._clock()
        believed, then = self._seen
        steady = believed + (now - then)
        if wall <= steady + JUMP_S or (self._jumped_at is not None and now - self._jumped_at >= BELIEVED_AFTER_S):
            self._seen = (wall, now)
            self._jumped_at = None
            return wall
        if self._jumped_at is None:
            self._jumped_at = now
            log.warning(
                "the wall clock has jumped ahead: nothing expires by it for an hour, unless it is put right before",
                extra={"jump_s": round(wall - steady)},
            )
        return steady
