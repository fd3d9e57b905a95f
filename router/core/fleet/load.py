"""The load that a worker reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SEAT_TOKENS = 1024
"""Less than one step of prefill: a worker with prefills to do would have more under way."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One read of a worker's /metrics. Counts are requests; None: the worker exports no such figure."""

    running: int
    waiting: int
    kv_cache_usage: float
    """0 … 1."""
    prefilling_tokens: float | None
    """Uncached prompt tokens of scheduled requests whose first token is not out. Aborted requests may leave some in the figure
    for ever, so it is a hint."""
    cache_tokens: int | None
    process_start_time: float | None
    """Unix seconds."""

    tokens: float | None = None
    """Prompt and answer tokens computed since the process began: the figure grows while the worker is at work."""

    is_asleep: bool = False
    """One of its engines has released its memory with the cache; requests would wait until someone wakes it."""

    looked_up_tokens: Mapping[bytes, float] = field(default_factory=dict)
    """By engine, a counter of prompt tokens looked up in the cache since it started. Keys are the metric's labels, as
    written."""

    def is_after_restart(self, before: LoadReport) -> bool:
        """True if an engine is another process than it was ``before``, so that its cache is empty. A worker reports its start
        time, unless it has several API servers, as with data-parallel engines: then a counter that fell shows a restart."""
        if self.process_start_time is not None and before.process_start_time is not None:
            return self.process_start_time != before.process_start_time
        counted = self.looked_up_tokens
        return any(counted.get(engine, tokens) < tokens for engine, tokens in before.looked_up_tokens.items())

    @property
    def is_short_of_seats(self) -> bool:
        """Requests wait although almost nothing is being prefilled: decoding has all the seats. The wait for a seat says
        nothing of the speed of prefills."""
        return self.waiting > 0 and self.prefilling_tokens is not None and self.prefilling_tokens < SEAT_TOKENS
