"""A tenant's own limits: a request is charged for what it may take at the most, and settled for what it took.

visit    a request of a route that keeps state: counted, or 429
charge   any other: passes with a reservation, or 429
settle   what it took in the end
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from router.core.errors import TenantLimited
from router.core.fleet.fleet import Fleet
from router.core.request.record import Record
from router.core.request.request import NO_TENANT, Request
from router.core.tenants.quota import Asked, Ledger, Reservation
from router.core.tenants.tenant import TenantRules
from router.wire.upstream_params import with_shorter_answers

PROMPT_MARGIN, TEMPLATE_TOKENS = 1.5, 256
"""A prompt may be longer than its bytes suggest by this factor, and by the tokens of a chat template."""


class TenantLimits:
    """One for the process. ``wall_clock``: Unix time, for budgets of a day. ``refusals``: counts by reason."""

    def __init__(
        self, fleet: Fleet, clock: Callable[[], float], wall_clock: Callable[[], float], refusals: Counter[str]
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._wall_clock = wall_clock
        self._refusals = refusals
        self.ledger = Ledger()

    @contextmanager
    def visit(self, rules: TenantRules) -> Iterator[None]:
        """For a request of a route that keeps state: it may need no worker. Raises RateLimited."""
        if rules.tenant == NO_TENANT:
            yield
            return
        account = self.ledger.account(rules)
        with self._counting_refusals():
            account.enter(rules, self._clock())
        try:
            yield
        finally:
            account.leave()

    def charge(self, request: Request, rules: TenantRules) -> Reservation | None:
        """None without tenants. Raises RateLimited, BudgetExceeded."""
        if rules.tenant == NO_TENANT:
            return None
        with self._counting_refusals():
            account = self.ledger.account(rules)
            reservation = account.reserve(rules, self._asked(request), self._clock(), self._wall_clock())
        if reservation.is_capped and not self._may_be_shortened(request, reservation):
            return account.reserve_all(reservation)
        return reservation

    def _asked(self, request: Request) -> Asked:
        """An answer without a limit takes at most the rest of the model's window after the prompt."""
        if not request.route.spec.is_charged:
            return Asked(0.0, 0.0, is_entered=request.is_entered)
        prompt_tokens = self.prompt_tokens(request)
        if request.max_answer_tokens is not None:
            most = float(request.max_answer_tokens)
        else:
            window = self._fleet.catalog.window(request.model)
            most = max(1.0, window - prompt_tokens) if window else math.inf
        return Asked(prompt_tokens, most * request.answers, request.answers, request.is_entered)

    def _may_be_shortened(self, request: Request, reservation: Reservation) -> bool:
        """If the client set no limit, one is set only if it surely fits into the window beside the prompt: workers refuse a
        request that does not."""
        if request.max_answer_tokens is not None:
            return True
        prompt_tokens = PROMPT_MARGIN * reservation.asked.prompt_tokens + TEMPLATE_TOKENS
        return prompt_tokens + reservation.most_of_each <= self._fleet.catalog.window(request.model)

    def shortened(self, request: Request, reservation: Reservation) -> Request:
        """The request with the reserved tokens as its limit."""
        reservation.account.totals.shortened += 1
        return with_shorter_answers(request, reservation.most_of_each)

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except TenantLimited as limited:
            self._refusals[limited.code] += 1
            raise

    def settle(self, reservation: Reservation | None, record: Record) -> None:
        if reservation is not None:
            reservation.account.settle(reservation, record, self._clock())

    def prompt_tokens(self, request: Request) -> float:
        return request.fingerprint.prompt_bytes / self._fleet.learning.bytes_per_token(request.model)
