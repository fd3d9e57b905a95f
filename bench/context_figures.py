"""The figures of one way's turns. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean
from typing import Any, NamedTuple

from bench.context_client import TEMPLATE_TOKENS, Sample
from bench.verdict import percentile

SLACK_TOKENS = 40
"""A continued prompt may have this many fewer cached tokens: its last block, and tokens that a template moves."""
SUMMARY_PRICE = 0.1
"""The price of a summariser's token, where a computed token of the model costs 1."""


class Prices(NamedTuple):
    """Prices of a token: ``write`` for a computed one, ``read`` for a cached one."""

    write: float
    read: float


PRICES = (Prices(1, 0.1), Prices(1, 0.25), Prices(1, 0.02))


def is_break(before: Sample, sample: Sample, slack: int = SLACK_TOKENS) -> bool:
    """Whether the prompt does not continue the prompt before it."""
    return sample.prompt < before.prompt or sample.cached + slack < before.prompt


def cost(samples: Sequence[Sample], prices: Prices, summary_tokens: float) -> float:
    """The cost of a turn, where a computed token costs 1. ``summary_tokens``: the turn's share of the summariser's tokens."""
    sent, computed = mean(one.prompt for one in samples), mean(one.prompt - one.cached for one in samples)
    return prices.read * sent + (prices.write - prices.read) * computed + SUMMARY_PRICE * prices.write * summary_tokens


def summed_up(
    sessions: Sequence[Sequence[Sample]], summary_tokens: int, time_scale: float, slack: int
) -> dict[str, Any]:
    """The figures of a way, in the workers' seconds. ``summary_tokens``: read and written for all sessions."""
    turns = [one for session in sessions for one in session]
    pairs = [pair for session in sessions for pair in pairwise(session)]
    broken = [after for before, after in pairs if is_break(before, after, slack)]
    unbroken = [(before, after) for before, after in pairs if not is_break(before, after, slack)]
    computed = [one.prompt - one.cached for one in turns]
    return {
        "sessions": len(sessions),
        "turns": len(turns),
        "prompt_tokens_a_turn": round(mean(one.prompt for one in turns)),
        "hit_ratio": round(sum(one.cached for one in turns) / sum(one.prompt for one in turns), 4),
        "prefill_tokens_a_turn": {
            "mean": round(mean(computed), 1),
            "p95": percentile(computed, 0.95),
            "max": max(computed),
        },
        "ttft_s": {"broken": _times(broken, time_scale), "others": _times([b for _, b in unbroken], time_scale)},
        "breaks_per_100_turns": round(100 * len(broken) / len(turns), 2),
        "compression": round(sum(one.raw for one in turns) / sum(one.prompt for one in turns), 3),
        "put_in_tokens_a_turn": round(mean([put_in(*pair) for pair in unbroken] or [0])),
        "summariser_tokens": summary_tokens,
        "cost_index": {
            f"{p.write:g}, {p.read:g}": round(cost(turns, p, summary_tokens / len(turns)), 1) for p in PRICES
        },
    }


def put_in(before: Sample, after: Sample) -> int:
    """Tokens that the router recalled into the prompt."""
    return after.prompt - before.prompt - before.answered - after.own - TEMPLATE_TOKENS


def _times(samples: Sequence[Sample], time_scale: float) -> dict[str, float] | None:
    if not samples:
        return None
    taken = [one.ttft_s * time_scale for one in samples]
    return {name: round(percentile(taken, share), 4) for name, share in (("p50", 0.5), ("p95", 0.95))}
