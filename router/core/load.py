"""What a worker says of its load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One read of a worker's /metrics. Counts are requests; None where the worker does not say."""

    running: int
    waiting: int
    kv_cache_usage: float
    """0 … 1."""
    prefilling_tokens: float | None
    """Uncached tokens that were scheduled and whose first token is not out: looked up in the cache, not found there, and
    not computed to the end. Aborted requests may leave some behind for ever, so this is a hint."""
    cache_tokens: int | None
    process_start_time: float | None
    """Unix seconds; another value than before means another process, whose cache is empty."""
