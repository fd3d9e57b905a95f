"""The high mark swept at several low ones, and the cost of each against that of the mark which the square-root rule names.

What is judged are whole cycles, from a conversation's first cut to its last. The rule is given what workers counted: what a
turn adds, what is computed anew behind a cut, and what of a summariser's work does not grow with what is cut.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import sqrt
from statistics import mean
from typing import Any, NamedTuple

from bench.context_client import Marks, Sample
from bench.context_figures import PRICES, SUMMARY_PRICE, Prices, cost
from bench.context_runs import Found, Plan, run

WAYS = ("session-window", "session-summary")
LOWS = (2000, 3000, 5000)
HIGHS = (4000, 5000, 6000, 7000, 8000, 10_000, 12_000, 14_000, 16_000, 20_000)
MIN_STEP = 1.2
"""Of the low mark; the router lets none be nearer."""
MAX_OVER_BEST = 1.1


class Point(NamedTuple):
    """``growth``: tokens a turn adds; ``remade``: computed anew behind a cut; ``notes``: a summariser's for one cut, besides
    what was cut; ``costs``: of a turn, at each of PRICES."""

    high: int
    growth: float
    remade: float
    notes: float
    cuts: int
    costs: tuple[float, ...]


async def sweep(plan: Plan, ways: Sequence[str]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Figures and claims."""
    figures: dict[str, Any] = {}
    claims: dict[str, bool] = {}
    for way in ways or WAYS:
        for low in LOWS:
            points = []
            for high in HIGHS:
                if high >= MIN_STEP * low:
                    points.append(measured(await run(plan, way, Marks(high, low)), Marks(high, low)))
                    print(f"{way} {low}-{high}: {points[-1]}", file=sys.stderr, flush=True)
            verdicts = {f"{p.write:g}, {p.read:g}": judged(points, low, at) for at, p in enumerate(PRICES)}
            figures[f"{way}, low {low}"] = {"points": [point._asdict() for point in points], "rule": verdicts}
            for price, verdict in verdicts.items():
                claim = (
                    f"{way}, low {low}, prices {price}: the rule's mark costs at most {MAX_OVER_BEST:g} of the best's"
                )
                claims[claim] = verdict["over_best"] <= MAX_OVER_BEST
    return figures, claims


def measured(found: Found, watermarks: Marks) -> Point:
    """Raises RuntimeError where no conversation was cut twice."""
    cycles = [whole for session in found.sessions if (whole := whole_cycles(session))]
    if not cycles:
        raise RuntimeError(f"no conversation is long enough for the marks {watermarks.low} and {watermarks.high}")
    turns = [one for session in cycles for one in session]
    after_cut = [one for session in cycles for at, one in enumerate(session) if not at or _is_cut(session[at - 1], one)]
    others = [
        after for session in cycles for before, after in pairwise(session) if not _is_cut(before, after)
    ] or after_cut
    notes = found.summary_tokens / found.summary_calls if found.summary_calls else 0.0
    return Point(
        high=watermarks.high,
        growth=mean(after.raw - before.raw for session in cycles for before, after in pairwise(session)),
        remade=_computed(after_cut) - _computed(others),
        notes=max(notes - (watermarks.high - watermarks.low), 0.0) if notes else 0.0,
        cuts=len(after_cut),
        costs=tuple(cost(turns, prices, notes * len(after_cut) / len(turns)) for prices in PRICES),
    )


def whole_cycles(session: Sequence[Sample]) -> list[Sample]:
    """From the first turn behind a cut to the last one before a cut."""
    cuts = [at for at in range(1, len(session)) if _is_cut(session[at - 1], session[at])]
    return list(session[cuts[0] : cuts[-1]]) if len(cuts) > 1 else []


def _is_cut(before: Sample, after: Sample) -> bool:
    return after.prompt < before.prompt


def _computed(samples: Sequence[Sample]) -> float:
    return mean(one.prompt - one.cached for one in samples)


def judged(points: Sequence[Point], low: int, at: int) -> Mapping[str, Any]:
    """``at``: which of PRICES."""
    prices = PRICES[at]
    mark = min(max(named_mark(points, low, prices), points[0].high), points[-1].high)
    best = min(points, key=lambda point: point.costs[at])
    over_best = cost_at(points, mark, at) / best.costs[at]
    return {"mark": round(mark), "best": best.high, "over_best": round(over_best, 4)}


def named_mark(points: Sequence[Point], low: int, prices: Prices) -> float:
    """``L + √(2 g ((w - c) R + K) / c)``"""
    growth, remade, notes = (mean(values) for values in zip(*(point[1:4] for point in points), strict=True))
    a_cut = (prices.write - prices.read) * remade + SUMMARY_PRICE * prices.write * notes
    return low + sqrt(2 * growth * a_cut / prices.read)


def cost_at(points: Sequence[Point], mark: float, at: int) -> float:
    """On the line between the two marks that were measured beside it."""
    right = max(1, bisect_left([point.high for point in points], mark))
    before, after = points[right - 1], points[right]
    share = (mark - before.high) / (after.high - before.high)
    return before.costs[at] * (1 - share) + after.costs[at] * share
