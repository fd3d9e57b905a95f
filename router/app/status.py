"""The figures that the status page and the admin port show."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from router.app.sessions import SessionState
from router.core.fleet.fleet import Fleet
from router.core.index.prefix_index import PrefixIndex
from router.core.request.record import Record
from router.server.admin import show_decision

DECISIONS = 20


def describe_workers(fleet: Fleet, index: PrefixIndex, date_of: Callable[[float], str]) -> list[dict[str, Any]]:
    """For the admin port: only it may show URLs. ``date_of`` turns a time of the fleet's clock into a date."""
    return [
        {
            "name": member.name,
            "url": member.address.url,
            "state": member.state.value,
            "since": None if member.since is None else date_of(member.since),
            "last_error": member.last_error,
            "models": sorted(member.models),
            "in_flight": fleet.figures.in_flight[member.position],
            "queued_prefill_tokens": round(fleet.figures.queued_prefill_tokens[member.position]),
            "prefill_rate": round(1.0 / fleet.figures.seconds_per_token[member.position], 1),
            "running": member.load.running if member.load else None,
            "waiting": member.load.waiting if member.load else None,
            "kv_cache_usage": member.load.kv_cache_usage if member.load else None,
            "cache_tokens": member.load.cache_tokens if member.load else None,
            "index_blocks": index.blocks(member.position),
            "max_blocks": index.limit(member.position),
            "requests": member.reuse.requests,
            "prompt_tokens": member.reuse.prompt_tokens,
            "cached_tokens": member.reuse.cached_tokens,
        }
        for member in fleet.members()
    ]


def describe(
    fleet: Fleet,
    index: PrefixIndex,
    decisions: deque[Record],
    state: SessionState,
    live_requests: Callable[[], int],
    queued: Callable[[], int],
    date_of: Callable[[float], str],
) -> dict[str, Any]:
    """O(workers): about a millisecond for 200 workers."""
    journaled = state.store.journaled
    sessions = {
        "turns": sum(state.turns.counts.turns.values()),
        "cached": len(state.turns.histories.cache),
        "store_up": state.watch.is_up,
        "waiting": journaled.waiting if journaled else 0,
    }
    return {
        "workers": describe_workers(fleet, index, date_of),
        "decisions": [show_decision(record) for record in islice(reversed(decisions), DECISIONS)],
        "live_requests": live_requests(),
        "queued": queued(),
        "saved_prefill_s": sum(member.reuse.saved_s for member in fleet.members()),
        "sessions": sessions if state.routes is not None else None,
    }
