"""All that a policy may know when it ranks workers for one request.

Workers are positions ``0 … n-1`` in the fleet's order, and every per-worker figure is a sequence indexed by
position: with a thousand workers, a thousand small objects a request would cost more than the decision.
A policy reads these sequences and must never write to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from router.core.fleet.ring import Ring
    from router.core.index.prefix_index import Matches
    from router.core.worker import WorkerName


@dataclass(frozen=True, slots=True)
class FleetView:
    """The fleet as it stands at this moment, by position."""

    names: Sequence[WorkerName]
    in_flight: Sequence[int]
    """Leases that this router holds on the worker."""
    foreign_in_flight: Sequence[int]
    """Requests running or waiting there that are not ours: the polled figure less our own leases at that poll, at least 0."""
    queued_prefill_tokens: Sequence[float]
    """Tokens that this router sent there, expected to miss the cache, whose first token is not back yet."""
    foreign_prefill_tokens: Sequence[float]
    """The same for other replicas' requests, estimated from what the worker exports of its queue and its prefills."""
    seconds_per_token: Sequence[float]
    """1 / learnt prefill rate, in s per uncached token; always > 0."""
    slowdown: Sequence[float]
    """≥ 1. A worker that has just come back starts high and falls to 1: its costs are multiplied by it."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One request seen against the fleet."""

    fleet: FleetView
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
