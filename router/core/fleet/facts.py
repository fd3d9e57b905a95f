"""All that a policy may know when it ranks workers for one request.

Workers are positions ``0 … n-1`` in the fleet's order. A policy reads the figures, and must never write to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from router.core.fleet.figures import Figures
    from router.core.fleet.ring import Ring
    from router.core.index.prefix_index import Matches


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One request seen against the fleet."""

    fleet: Figures
    eligible: Sequence[int]
    """Positions that serve the model and may be tried, ascending, never empty. A policy ranks exactly these."""
    prompt_tokens: float
    earlier_tokens: float
    """Of the prompt, the tokens that an earlier turn of the same conversation must have warmed somewhere: all but the
    newest messages once there is an assistant's message; 0 on a first turn."""
    anchor: int
    """64-bit ring key of the stable prefix: tenant, model, adapter, system prompt, tools, first user turn."""
    ring: Ring
    matches: Matches
    """What the index says is cached, in tokens, on the workers where that is more than nothing."""
    session_worker: int | None
    """Position where the session's last turn went, if known and still in the fleet (it may not be eligible)."""
