"""The strategies to keep a history within its window."""

from __future__ import annotations

from typing import NamedTuple

from router.core.tenants.tenant import ContextStrategy


class Traits(NamedTuple):
    """``cuts``: at watermarks; ``summarizes`` what was cut; ``recalls``: searches what was cut, for each question."""

    cuts: bool = False
    summarizes: bool = False
    recalls: bool = False


STRATEGIES: dict[ContextStrategy, Traits] = {
    "none": Traits(),
    "window": Traits(cuts=True),
    "summary": Traits(cuts=True, summarizes=True),
    "recall": Traits(cuts=True, recalls=True),
    "hybrid": Traits(cuts=True, summarizes=True, recalls=True),
}
