"""How much of its limits a tenant has used. Pure: both clocks are passed in. Every figure holds for one replica.

Before a request starts, what it is expected to take is *reserved* from each limit, or nothing is; when it has ended, what
it took is settled. Limits are passed in with each call, and only what was used is kept, so that new limits hold at once
and forget nothing. A request that is larger than a whole limit passes when nothing of the limit is in use, and leaves it
overdrawn: its tenant waits for longer afterwards, rather than for ever now.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from router.core.errors import BudgetExceeded, RateLimited
from router.core.record import Record
from router.core.request import Tenant
from router.core.tenant import TenantRules

MINUTE_S = 60.0
DAY_S = 86_400
INITIAL_COMPLETION_TOKENS = 256.0
"""What an answer is expected to take before its tenant has had any."""
ROUNDING_S = 1e-6
NEWEST = 0.05
"""What the newest answer weighs in the mean."""


@dataclass(slots=True)
class Bucket:
    """A token bucket of one minute's limit, which refills steadily; kept as what is missing from it. A limit of None refills
    it at once."""

    used: float = 0.0
    at: float = 0.0

    def wait_s(self, amount: float, limit: int | None, now: float) -> float:
        """Seconds until so much may be taken; 0: now."""
        if limit is None:
            self.used, self.at = 0.0, now
            return 0.0
        self.used = max(0.0, self.used - (now - self.at) * limit / MINUTE_S)
        self.at = now
        wait_s = (self.used - max(limit - amount, 0.0)) * MINUTE_S / limit
        return wait_s if wait_s > ROUNDING_S else 0.0

    def settle(self, reserved: float, actual: float, limit: int | None, age_s: float) -> None:
        """What was too little is taken in full. Of what was too much, only that is given back which cannot have been refilled
        since: else a slow answer would give back what was refilled already."""
        if actual >= reserved:
            self.used += actual - reserved
        elif limit is not None:
            refilled = age_s * limit / MINUTE_S
            self.used -= max(reserved - refilled, 0.0) - max(actual - refilled, 0.0)
            self.used = max(0.0, self.used)


@dataclass(slots=True)
class Day:
    """What was used since midnight UTC."""

    number: int = 0
    used: float = 0.0

    def begin(self, number: int) -> None:
        if number != self.number:
            self.number, self.used = number, 0.0

    def has_room(self, amount: float, limit: int | None) -> bool:
        return limit is None or self.used <= max(limit - amount, 0.0)

    def settle(self, reserved: float, actual: float, number: int) -> None:
        """``number``: the day that the reservation was made on; yesterday's is settled by its end."""
        if number == self.number:
            self.used = max(0.0, self.used + actual - reserved)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one request holds of its tenant's limits, until ``Account.settle``."""

    account: Account
    prompt_tokens: float
    completion_tokens: float
    at: float
    day: int


@dataclass(slots=True)
class Totals:
    """Since the account was opened, as workers counted; cached tokens are among the prompt's."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True, eq=False)
class Account:
    """One tenant's. ``rules``: the newest that a request came with."""

    rules: TenantRules
    in_flight: int = 0
    mean_completion_tokens: float = INITIAL_COMPLETION_TOKENS
    totals: Totals = field(default_factory=Totals)
    requests: Bucket = field(default_factory=Bucket)
    prompt: Bucket = field(default_factory=Bucket)
    completion: Bucket = field(default_factory=Bucket)
    prompt_day: Day = field(default_factory=Day)
    completion_day: Day = field(default_factory=Day)

    def reserve(
        self, rules: TenantRules, prompt_tokens: float, now: float, wall_s: float, *, generates: bool = True
    ) -> Reservation:
        """``now``: monotonic seconds; ``wall_s``: Unix time; ``generates``: its answer has tokens of its own.
        Raises RateLimited, BudgetExceeded, and then takes nothing."""
        self.rules = rules
        completion_tokens = self.mean_completion_tokens if generates else 0.0
        day = int(wall_s // DAY_S)
        self._check(prompt_tokens, completion_tokens, now, wall_s, day)
        self.in_flight += 1
        self.requests.used += 1.0
        self.prompt.used += prompt_tokens
        self.completion.used += completion_tokens
        self.prompt_day.used += prompt_tokens
        self.completion_day.used += completion_tokens
        return Reservation(self, prompt_tokens, completion_tokens, now, day)

    def _check(self, prompt_tokens: float, completion_tokens: float, now: float, wall_s: float, day: int) -> None:
        rules = self.rules
        self.prompt_day.begin(day)
        self.completion_day.begin(day)
        if not (
            self.prompt_day.has_room(prompt_tokens, rules.prompt_tokens_per_day)
            and self.completion_day.has_room(completion_tokens, rules.completion_tokens_per_day)
        ):
            raise BudgetExceeded("the day's budget of tokens is spent", retry_after_s=_whole(DAY_S - wall_s % DAY_S))
        if 0 < rules.max_in_flight <= self.in_flight:
            raise RateLimited(f"{rules.max_in_flight} requests are under way, which is the most", retry_after_s=1)
        wait_s, what = max(
            (self.requests.wait_s(1.0, rules.requests_per_minute, now), "requests"),
            (self.prompt.wait_s(prompt_tokens, rules.prompt_tokens_per_minute, now), "prompt tokens"),
            (self.completion.wait_s(completion_tokens, rules.completion_tokens_per_minute, now), "completion tokens"),
        )
        if wait_s > 0.0:
            raise RateLimited(f"too many {what} a minute", retry_after_s=_whole(wait_s))

    def settle(self, reservation: Reservation, record: Record, now: float) -> None:
        """The request has ended, however it did. What its worker did not count stays as it was expected, if the client has
        anything of an answer; a request that no worker was sent counts as none."""
        self.in_flight -= 1
        self._learn(record)
        prompt, completion = self._taken(reservation, record)
        rules, age_s = self.rules, now - reservation.at
        if not record.attempts:
            self.requests.settle(1.0, 0.0, rules.requests_per_minute, age_s)
        self.prompt.settle(reservation.prompt_tokens, prompt, rules.prompt_tokens_per_minute, age_s)
        self.completion.settle(reservation.completion_tokens, completion, rules.completion_tokens_per_minute, age_s)
        self.prompt_day.settle(reservation.prompt_tokens, prompt, reservation.day)
        self.completion_day.settle(reservation.completion_tokens, completion, reservation.day)

    def _taken(self, reservation: Reservation, record: Record) -> tuple[float, float]:
        """Prompt and completion tokens. Each read of a stream had a token at the least."""
        if not record.first_byte_at or record.status >= 400:
            return 0.0, 0.0
        if not record.prompt_tokens:
            return reservation.prompt_tokens, max(reservation.completion_tokens, float(record.chunks))
        cached = record.actual_cached_tokens or 0
        prompt = record.prompt_tokens - cached * (1.0 - self.rules.cached_token_weight)
        return prompt, float(record.completion_tokens)

    def _learn(self, record: Record) -> None:
        totals = self.totals
        totals.requests += 1
        totals.prompt_tokens += record.prompt_tokens
        totals.cached_tokens += record.actual_cached_tokens or 0
        totals.completion_tokens += record.completion_tokens
        if record.completion_tokens:
            self.mean_completion_tokens += NEWEST * (record.completion_tokens - self.mean_completion_tokens)

    def day_tokens(self, wall_s: float) -> Iterator[tuple[str, float, int]]:
        """Kind, what is left of it, and the day's, of each budget that there is."""
        number = int(wall_s // DAY_S)
        for kind, day, limit in (
            ("prompt", self.prompt_day, self.rules.prompt_tokens_per_day),
            ("completion", self.completion_day, self.rules.completion_tokens_per_day),
        ):
            if limit is not None:
                day.begin(number)
                yield kind, max(0.0, limit - day.used), limit


class Ledger:
    """An account for each tenant that has a key and has sent a request. As many as tenants are configured: whoever
    replaces those calls ``keep``."""

    def __init__(self) -> None:
        self.accounts: dict[Tenant, Account] = {}

    def account(self, rules: TenantRules) -> Account:
        account = self.accounts.get(rules.tenant)
        if account is None:
            account = self.accounts[rules.tenant] = Account(rules)
        return account

    def keep(self, tenants: Collection[Tenant]) -> None:
        """Forget the others, but for those that have something under way: their turn is the next time."""
        for tenant, account in tuple(self.accounts.items()):
            if tenant not in tenants and not account.in_flight:
                del self.accounts[tenant]


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
