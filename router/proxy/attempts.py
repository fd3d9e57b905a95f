"""The attempts to serve one request, one worker after another: how many, at what cost, under which deaths and spans.

A request has one series of them until its first event, and another for each time that its stream is resumed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import msgspec

from router.core.fleet.member import Member
from router.core.request.poison_guard import PoisonGuard
from router.core.request.record import Record
from router.core.request.request import Request
from router.core.request.retry import RetryBudget
from router.core.request.trace import Trace
from router.proxy.selection import AttemptRefusal

T = TypeVar("T")
Try = Callable[[Request], Awaitable[T | AttemptRefusal]]
"""One attempt, with the request as its worker gets it."""


class Attempts:
    """A context: leaving it ends its retries in the budget."""

    __slots__ = ("_budget", "_clock", "_is_resumption", "_most", "_poison_guard", "_record", "_retries", "made")

    def __init__(
        self,
        most: int,
        budget: RetryBudget,
        poison_guard: PoisonGuard,
        record: Record,
        clock: Callable[[], float],
        *,
        is_resumption: bool = False,
    ) -> None:
        self._most = most
        self._budget = budget
        self._record = record
        self._clock = clock
        self._is_resumption = is_resumption
        self._retries = 0
        self._poison_guard = poison_guard
        self.made = 0

    def __repr__(self) -> str:
        return f"Attempts({self.made} of {self._most}, {self._retries} retries)"

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._budget.retrying -= self._retries

    @property
    def are_left(self) -> bool:
        return self.made < self._most

    def begin(self, *, is_free: bool) -> bool:
        """Count one more. False if it is not free and the budget has no retry left."""
        if not is_free:
            if not self._budget.take(self._clock()):
                return False
            self._retries += 1
        self.made += 1
        return True

    async def run(self, member: Member, request: Request, attempt: Try[T]) -> T | AttemptRefusal:
        """Raises PoisonRequest when too many workers have died."""
        trace = self._record.trace
        outcome = await (attempt(request) if trace is None else self._traced(trace, member, request, attempt))
        if isinstance(outcome, AttemptRefusal) and outcome.is_death:
            self._poison_guard.add(member.name, self._record.chunks)
            self._poison_guard.check()
        return outcome

    async def _traced(self, trace: Trace, member: Member, request: Request, attempt: Try[T]) -> T | AttemptRefusal:
        """The attempt is a span, and the worker gets that span as its parent."""
        record = self._record
        span = trace.attempt(member.address, self._clock(), is_resumption=self._is_resumption)
        span.outcome = "cancelled"
        try:
            outcome = await attempt(msgspec.structs.replace(request, traceparent=trace.traceparent(span.span_id)))
            span.outcome = record.outcome
            return outcome
        finally:
            tried = record.tried[-1]
            if tried.failure and not tried.broke:
                span.outcome = tried.failure
            span.ended_at = trace.phase_began_at = self._clock()
