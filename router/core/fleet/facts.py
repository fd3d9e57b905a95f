"""The facts from which a policy ranks workers for one request.

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
    """Prompt tokens that an earlier turn of the conversation must have warmed on some worker: all but the newest messages, once
    there is an assistant's message; 0 on a first turn."""
    anchor: int
    """64-bit ring key of the stable prefix: tenant, model, system prompt, tools, first user turn."""
    ring: Ring
    matches: Matches
    """Cached tokens on each worker that has any, by the index."""
    session_worker: int | None
    """Position of the worker of the session's last turn, if it is known and in the fleet. It may not be eligible."""
