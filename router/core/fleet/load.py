"""What a worker says of its load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """Unix seconds."""

    tokens: float | None = None
    """Of prompts and of answers, computed since the process began: a figure that grows while the worker is at work."""

    is_asleep: bool = False
    """An engine of it has given its memory away, cache and all; requests would wait until somebody wakes it."""

    looked_up_tokens: Mapping[bytes, float] = field(default_factory=dict)
    """By engine, prompt tokens that it looked up in its cache since it started: a counter. Keys are its labels, as written."""

    def is_after_restart(self, before: LoadReport) -> bool:
        """True if an engine is another process than it was ``before``, so that its cache is empty. A worker says when it
        started, unless it has several API servers, as with data-parallel engines: there, a counter that fell tells."""
        if self.process_start_time is not None and before.process_start_time is not None:
            return self.process_start_time != before.process_start_time
        counted = self.looked_up_tokens
        return any(counted.get(engine, tokens) < tokens for engine, tokens in before.looked_up_tokens.items())

    @property
    def is_short_of_seats(self) -> bool:
        """Requests wait although next to nothing is being prefilled: decoding has all the seats, and how long one waits for
        them says nothing of how fast the worker prefills."""
        return self.waiting > 0 and self.prefilling_tokens is not None and self.prefilling_tokens < SEAT_TOKENS
