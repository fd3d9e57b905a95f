"""How a history is kept within its window: the table of what can be chosen."""

from __future__ import annotations

from typing import NamedTuple

from router.core.tenants.tenant import ContextStrategy


class Traits(NamedTuple):
    """``cuts``: at marks; ``tells``: notes tell of what was cut; ``recalls``: what was cut is searched for each question."""

    cuts: bool = False
    tells: bool = False
    recalls: bool = False


STRATEGIES: dict[ContextStrategy, Traits] = {
    "none": Traits(),
    "window": Traits(cuts=True),
    "summary": Traits(cuts=True, tells=True),
    "recall": Traits(cuts=True, recalls=True),
    "hybrid": Traits(cuts=True, tells=True, recalls=True),
}
