"""Models' windows as sessions see them. A window that grows counts at once, and one that shrinks counts after a while: a cut
cannot be taken back, and a worker that restarts may report a wrong window for a minute."""

from __future__ import annotations

from collections.abc import Callable

SHRINK_S = 180.0
"""Time that a smaller window must last before it counts. Until then, a worker itself refuses a prompt that is too long for it.
"""

MAX_MODELS = 1000


class WindowSizes:
    """``window``: a model's, in tokens, as the fleet has it now; 0: unknown."""

    def __init__(self, window: Callable[[str], int], clock: Callable[[], float]) -> None:
        self._window = window
        self._clock = clock
        self._settled: dict[str, int] = {}
        self._shrank_at: dict[str, float] = {}

    def __call__(self, model: str) -> int:
        window, settled = self._window(model), self._settled.get(model, 0)
        if window < settled:
            now = self._clock()
            if now - self._shrank_at.setdefault(model, now) < SHRINK_S:
                return settled
        self._shrank_at.pop(model, None)
        if window and (settled or len(self._settled) < MAX_MODELS):
            self._settled[model] = window
        else:
            self._settled.pop(model, None)
        return window
