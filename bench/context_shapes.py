"""Two fixed shares of the window, from which and to which a history is cut, against the economic order quantity.

After a cut the worker computes the rest anew; a long history costs a little every turn. Between two cuts the history
grows from low to high. With ``g`` tokens a turn there is one cut in ``(high - low) / g`` turns, and the cost of a turn,

    c · (high + low) / 2  +  (w - c) · remade · g / (high - low)

is least at ``high = low + √(2 g (w - c) remade / c)`` (Harris, 1913). ``w`` is the price of a computed token and ``c`` of
a cached one; ``remade`` are the tokens computed anew after a cut. The formula gets the workers' counts from the run with
shares. The comparison uses whole cycles, from a conversation's first cut to its last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from statistics import mean
from typing import Any, NamedTuple

from bench.context_client import Marks, Sample
from bench.context_figures import PRICES, cost
from bench.context_runs import Found, Plan, run
from bench.dialogues import Turn

HIGH_SHARE, LOW_SHARE = 0.75, 0.25
"""As in ``router.sessions.context.watermarks``."""
WAY = "session-window"
WINDOWS = (32_768, 65_536)


class Shape(NamedTuple):
    """``turn_tokens``: mean of question and answer. ``turns``: of a conversation, for each of WINDOWS."""

    turn_tokens: int
    turns: tuple[int, int]


SHAPES = {
    "short chat turns": Shape(310, (200, 300)),
    "a long tool-using agent": Shape(1500, (60, 100)),
    "long documents": Shape(6000, (30, 40)),
}


class Point(NamedTuple):
    """``growth``: tokens that a turn adds. ``remade``: computed anew after a cut. ``costs``: of a turn, at each of PRICES."""

    high: int
    growth: float
    remade: float
    cuts: int
    costs: tuple[float, ...]


async def compare_shapes(
    plan: Plan, system_tokens: int, conversations: Callable[[int, int], Sequence[Sequence[Turn]]]
) -> dict[str, Any]:
    """Compares all shapes. ``conversations``: makes conversations from turns and tokens of a turn."""
    figures: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        for window, turns in zip(WINDOWS, shape.turns, strict=True):
            extra = {**plan.extra, "WARMROUTE_CONTEXT__MAX_TOKENS": str(window)}
            one = replace(plan, conversations=conversations(turns, shape.turn_tokens), extra=extra)
            room = window - system_tokens
            low = round(LOW_SHARE * room)
            shares = await _measure(one, Marks(round(HIGH_SHARE * room), low))
            formula = await _measure(one, Marks(min(formula_mark(shares, low), room), low))
            ratio = shares.costs[0] / formula.costs[0]
            case = f"{name}, window {window}"
            figures[case] = {"shares": shares._asdict(), "formula": formula._asdict(), "cost_ratio": round(ratio, 3)}
            print(f"{case}: {figures[case]}", file=sys.stderr, flush=True)
    return figures


def formula_mark(point: Point, low: int) -> int:
    prices = PRICES[0]
    return low + round(sqrt(2 * point.growth * (prices.write - prices.read) * point.remade / prices.read))


async def _measure(plan: Plan, marks: Marks) -> Point:
    return measured(await run(plan, WAY, marks), marks)


def measured(found: Found, marks: Marks) -> Point:
    """The figures of a run. Raises RuntimeError if no conversation was cut twice."""
    cycles = [whole for session in found.sessions if (whole := whole_cycles(session))]
    if not cycles:
        raise RuntimeError(f"no conversation is long enough for the marks {marks.low} and {marks.high}")
    turns = [one for session in cycles for one in session]
    after_cut = [one for session in cycles for at, one in enumerate(session) if not at or _is_cut(session[at - 1], one)]
    others = [
        after for session in cycles for before, after in pairwise(session) if not _is_cut(before, after)
    ] or after_cut
    return Point(
        high=marks.high,
        growth=mean(after.raw - before.raw for session in cycles for before, after in pairwise(session)),
        remade=_computed(after_cut) - _computed(others),
        cuts=len(after_cut),
        costs=tuple(cost(turns, prices, 0.0) for prices in PRICES),
    )


def whole_cycles(session: Sequence[Sample]) -> list[Sample]:
    """The turns from the first one after a cut to the last one before a cut."""
    cuts = [at for at in range(1, len(session)) if _is_cut(session[at - 1], session[at])]
    return list(session[cuts[0] : cuts[-1]]) if len(cuts) > 1 else []


def _is_cut(before: Sample, after: Sample) -> bool:
    return after.prompt < before.prompt


def _computed(samples: Sequence[Sample]) -> float:
    return mean(one.prompt - one.cached for one in samples)
