"""Makes snapshots of the router for viewers of the status page, at most one a second for all of them, and none without
viewers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple

import msgspec

EVERY_S = 1.0
MAX_EVENTS = 120
"""Events for one viewer, which then connects anew. A viewer that does not read so gives its place back."""
SAMPLE_EVERY_S, SAMPLES = 10.0, 360
"""Samples of the hit ratio: an hour."""


class TooManyViewers(Exception):
    pass


class Sample(NamedTuple):
    """Sums of prompts' tokens since the start."""

    at: float
    """Unix time."""
    prompt: float
    predicted: float
    cached: float


class StatusFeed:
    """``snapshot`` returns the present figures. ``sums`` returns tokens of prompts, predicted and found in caches."""

    def __init__(
        self,
        snapshot: Callable[[], dict[str, Any]],
        sums: Callable[[], tuple[float, float, float]],
        max_viewers: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._snapshot = snapshot
        self._sums = sums
        self._clock = clock
        self._wall_clock = wall_clock
        self._event = b""
        self._made_at = -EVERY_S
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.max_viewers = max_viewers
        self.viewers = 0

    async def run(self) -> None:
        """Take samples, also without viewers, until cancelled."""
        while True:
            self._samples.append(Sample(self._wall_clock(), *self._sums()))
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """MAX_EVENTS server-sent events, one a second. Raises TooManyViewers."""
        if self.viewers >= self.max_viewers:
            raise TooManyViewers
        self.viewers += 1
        try:
            for _ in range(MAX_EVENTS):
                yield self.event()
                await asyncio.sleep(EVERY_S)
        finally:
            self.viewers -= 1

    def event(self) -> bytes:
        """The newest event. All viewers within one second get the same."""
        if self._clock() - self._made_at >= EVERY_S * 0.9:
            self._made_at = self._clock()
            now = Sample(self._wall_clock(), *self._sums())
            shown = {**self._snapshot(), "now": now.at, "history": [*self._samples, now]}
            self._event = b"data: %b\n\n" % msgspec.json.encode(shown)
        return self._event
