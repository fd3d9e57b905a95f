"""When a history is cut, and how far. Tokens throughout; a history is what is sent of the log, with the notes before it, and
without system messages and tools, which are never cut.

    ceiling   what the window, or a budget, leaves for the history: beyond, a turn is cut before it is sent
    high      from here on it is cut, behind a turn
    low       what a cut leaves

Cutting makes the worker compute the rest anew; carrying costs a little every turn. Between two cuts the history grows from low
to high, so with ``g`` tokens a turn there is one cut in ``(high - low) / g`` turns, and what a turn costs,

    carry · (high + low) / 2  +  ((write - carry) · remade + notes) · g / (high - low)

is least where ``high = low + √(2 g ((write - carry) · remade + notes) / carry)``: the economic order quantity (Harris, 1913).
How low "low" may be is for quality to say, since every token less is cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

MARGIN = 0.03
"""Of the window, for what counting gets wrong."""

LOW_SHARE, LOW_OF_HIGH = 0.25, 0.5
"""Of the ceiling, and at most of a high mark that is wished alone, where no low mark is given."""

MAX_LOW_SHARE = 0.6
"""Of the ceiling: a cut that frees less is followed by the next at once."""

MIN_STEP_SHARE = 0.2
"""Of the low mark, between the two."""


class Watermarks(NamedTuple):
    low: int
    high: int
    ceiling: int


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Of one token, in whatever unit. ``write``: computed; ``carry``: sent, and found in the cache or not, as things go;
    ``notes``: of one cut's notes, whole."""

    write: float
    carry: float
    notes: float = 0.0


def history_ceiling(window: int, budget: int, beside: int, answer: int) -> int:
    """``window``: the model's, 0: unknown; ``budget``: of the prompt, 0: none; ``beside``: tokens of the prompt that are no
    history; ``answer``: most tokens of the answer. At least 0."""
    bounds = [round(window * (1.0 - MARGIN)) - answer] if window else []
    bounds += [budget] if budget else []
    return max(min(bounds, default=1 << 40) - beside, 0)


def square_root_watermark(low: int, growth: float, remade: float, prices: TokenPrices) -> int:
    """``growth``: tokens that a turn adds; ``remade``: computed anew behind a cut."""
    at_a_cut = max(prices.write - prices.carry, 0.0) * remade + prices.notes
    return low + round(sqrt(2.0 * growth * at_a_cut / prices.carry))


def set_watermarks(low_wish: int, high_wish: int, ceiling: int, growth: float, prices: TokenPrices) -> Watermarks:
    """Wishes of 0 are none. ``low`` ≤ ``high`` ≤ ``ceiling``."""
    default = min(round(ceiling * LOW_SHARE), round(high_wish * LOW_OF_HIGH) if high_wish else ceiling)
    low = min(low_wish or default, round(ceiling * MAX_LOW_SHARE))
    high = high_wish or square_root_watermark(low, growth, low, prices)
    return Watermarks(low, min(max(high, round(low * (1.0 + MIN_STEP_SHARE))), ceiling), ceiling)


def is_worth_it(freed: int, remade: int, prices: TokenPrices, further_turns: float, *, is_warm: bool) -> bool:
    """Does a cut now cost less than the tokens that further turns would carry? Of a prefix that is in no cache, what stays has
    to be computed in any case, and a cut spares what goes."""
    if freed <= 0:
        return False
    spared = freed * prices.carry * further_turns + (0.0 if is_warm else freed * prices.write)
    return spared > ((prices.write - prices.carry) * remade if is_warm else 0.0) + prices.notes
