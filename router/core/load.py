"""What a worker says of its load."""

from __future__ import annotations

from dataclasses import dataclass

SEAT_TOKENS = 1024
"""Less than a step of prefill: a worker that had work of that kind to do would have more of it under way."""


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
    tokens: float | None = None
    """Of prompts and of answers, computed since the process began: a figure that grows while the worker is at work."""

    @property
    def is_short_of_seats(self) -> bool:
        """Requests wait although next to nothing is being prefilled: decoding has all the seats, and how long one waits for
        them says nothing of how fast the worker prefills."""
        return self.waiting > 0 and self.prefilling_tokens is not None and self.prefilling_tokens < SEAT_TOKENS
