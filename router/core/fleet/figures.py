"""The figures of the workers that policies read: parallel lists by position, which only the fleet writes.

With a thousand workers, a thousand small objects a request would cost more than the decision. So the lists change as leases
come and go, and a decision copies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from router.core.worker import WorkerName


@dataclass(frozen=True, slots=True)
class Figures:
    """The fleet as it stands at this moment."""

    names: list[WorkerName] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    """Leases that this router holds on the worker."""
    foreign_in_flight: list[int] = field(default_factory=list)
    """Requests of other routers that run or wait there: the polled figure less our own leases at that poll, at least 0."""
    queued_prefill_tokens: list[float] = field(default_factory=list)
    """Tokens that this router sent there, expected to miss the cache, whose first token is not back yet."""
    foreign_prefill_tokens: list[float] = field(default_factory=list)
    """Such tokens of other routers, estimated from what the worker exports of its queue and its prefills."""
    seconds_per_token: list[float] = field(default_factory=list)
    """1 / learnt prefill rate, in s per uncached token; always > 0."""
    slowdown: list[float] = field(default_factory=list)
    """≥ 1. A worker that has just come back starts high and falls to 1: its costs are multiplied by it."""

    def grow(self) -> None:
        """One position more, to be reset before it is used."""
        self.names.append(WorkerName(""))
        self.in_flight.append(0)
        self.foreign_in_flight.append(0)
        self.queued_prefill_tokens.append(0.0)
        self.foreign_prefill_tokens.append(0.0)
        self.seconds_per_token.append(0.0)
        self.slowdown.append(1.0)

    def reset(self, position: int, name: WorkerName, seconds_per_token: float) -> None:
        """For a worker that has just joined."""
        self.names[position] = name
        self.in_flight[position] = 0
        self.queued_prefill_tokens[position] = 0.0
        self.seconds_per_token[position] = seconds_per_token
        self.slowdown[position] = 1.0
        self.clear_foreign(position)

    def clear_foreign(self, position: int) -> None:
        self.foreign_in_flight[position] = 0
        self.foreign_prefill_tokens[position] = 0.0
