"""When a history is cut, and how far. Figures are tokens of the history: of what is sent of the log, with the summaries before
it, and without system messages and tools, which are never cut.

    ceiling   what the window, or a budget, leaves for the history; a longer one is cut before its turn is sent
    high      a history that has reached it is cut after its turn
    low       what a cut leaves
"""

from __future__ import annotations

from typing import NamedTuple

MARGIN = 0.03
"""Share of the window that is kept free because counts may be wrong."""

HIGH_SHARE, LOW_SHARE = 0.75, 0.25
"""Shares of the ceiling, where no watermark is set."""

LOW_OF_HIGH = 0.5
"""The low watermark is at most this share of a high one that is set alone."""

MAX_LOW_SHARE = 0.6
"""Highest low watermark, as a share of the ceiling. A cut that frees less is soon followed by the next."""

MIN_STEP_SHARE = 0.2
"""Least distance of the two watermarks, as a share of the low one."""


class Watermarks(NamedTuple):
    low: int
    high: int
    ceiling: int


def history_ceiling(window: int, budget: int, beside: int, answer: int) -> int:
    """``window``: the model's; 0: unknown. ``budget``: of the prompt; 0: none. ``beside``: tokens of the prompt that are no
    history. ``answer``: most tokens of the answer. At least 0."""
    bounds = [round(window * (1.0 - MARGIN)) - answer] if window else []
    bounds += [budget] if budget else []
    return max(min(bounds, default=1 << 40) - beside, 0)


def set_watermarks(low: int, high: int, ceiling: int) -> Watermarks:
    """``low`` and ``high``: as configured; 0: not set. Returns low ≤ high ≤ ceiling."""
    default = min(round(ceiling * LOW_SHARE), round(high * LOW_OF_HIGH) if high else ceiling)
    low = min(low or default, round(ceiling * MAX_LOW_SHARE))
    high = max(high or round(ceiling * HIGH_SHARE), round(low * (1.0 + MIN_STEP_SHARE)))
    return Watermarks(low, min(high, ceiling), ceiling)
