"""How much of its limits a tenant has used. Pure: both clocks are passed in. Every figure holds for one replica.

Before a request starts, what it may take is *reserved* from each limit, or nothing is; when it has ended, what it took is
settled. Limits are passed in with each call, and only what was used is kept, so that new limits hold at once and forget
nothing. A prompt that is larger than a whole limit passes when nothing of the limit is in use, and leaves it overdrawn: its
tenant waits for longer afterwards, rather than for ever now. An answer is never longer than what is reserved for it: where its
request asks for more, the worker is asked for less.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from router.core.errors import BudgetExceeded, RateLimited
from router.core.request.record import Record
from router.core.request.request import Tenant
from router.core.tenants.tenant import TenantRules

MINUTE_S = 60.0
DAY_S = 86_400
INITIAL_COMPLETION_TOKENS = 256.0
"""What an answer is expected to take before its tenant has had any."""
ROUNDING_S = 1e-6
FASTEST_TOKENS_S = 500.0
"""No worker writes one answer faster than so many tokens a second."""
NEWEST = 0.05
"""What the newest answer weighs in the mean."""
SHARE = 0.5
"""Of what is left of a limit, one answer may take that much, divided by the requests under way, and never less than the mean.
So all answers together stay within the limit, and no long one keeps the others out."""


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
        """A clock that is put back begins no day anew."""
        if number > self.number:
            self.number, self.used = number, 0.0

    def has_room(self, amount: float, limit: int | None) -> bool:
        return limit is None or self.used <= max(limit - amount, 0.0)

    def settle(self, reserved: float, actual: float, number: int) -> None:
        """``number``: the day that the reservation was made on; yesterday's is settled by its end."""
        if number == self.number:
            self.used = max(0.0, self.used + actual - reserved)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request may take of its tenant's limits, in tokens."""

    prompt_tokens: float
    max_tokens: float = 0.0
    """Of all its answers together; 0: it generates none; infinite: nobody can say."""
    answers: int = 1
    """Each takes one token at least."""
    is_entered: bool = False
    """Counted among the tenant's requests already."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one request holds of its tenant's limits, until ``Account.settle``."""

    account: Account
    asked: Asked
    completion_tokens: float
    """More than these the worker must not be asked for, where ``is_capped``."""
    is_capped: bool
    at: float
    day: int

    @property
    def most_tokens(self) -> float:
        """The most that all its answers together can have, since the worker was asked for no more."""
        return self.completion_tokens if self.is_capped else self.asked.max_tokens

    @property
    def most_of_each(self) -> int:
        """What a capped request may ask of its worker, for each of its answers."""
        return max(1, int(self.completion_tokens / self.asked.answers))


@dataclass(slots=True)
class Totals:
    """Since the account was opened, as workers counted; cached tokens are among the prompt's."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    shortened: int = 0
    """Requests whose worker was asked for a shorter answer than the client had asked for."""


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

    def enter(self, rules: TenantRules, now: float) -> None:
        """A request begins, and ``leave`` is called when it has ended. Raises RateLimited, and then counts nothing."""
        self.rules = rules
        self._check_in_flight()
        _require_no_wait((self.requests.wait_s(1.0, rules.requests_per_minute, now), "requests"))
        self._begin()

    def _begin(self) -> None:
        self.in_flight += 1
        self.requests.used += 1.0

    def leave(self) -> None:
        self.in_flight -= 1

    def reserve(self, rules: TenantRules, asked: Asked, now: float, wall_s: float) -> Reservation:
        """``now``: monotonic seconds; ``wall_s``: Unix time. Raises RateLimited, BudgetExceeded, and then takes nothing."""
        self.rules = rules
        day = int(wall_s // DAY_S)
        expected = min(max(self.mean_completion_tokens, asked.answers), asked.max_tokens)
        self._check(asked, expected, now, wall_s, day)
        if not asked.is_entered:
            self._begin()
        left = self._left()
        completion_tokens = expected
        if asked.max_tokens and left < math.inf:
            share = min(left, max(expected, SHARE * left / max(self.in_flight, 1)))
            completion_tokens = min(asked.max_tokens, max(asked.answers, share))
        self.prompt.used += asked.prompt_tokens
        self.completion.used += completion_tokens
        self.prompt_day.used += asked.prompt_tokens
        self.completion_day.used += completion_tokens
        is_capped = left < math.inf and completion_tokens < asked.max_tokens
        return Reservation(self, asked, completion_tokens, is_capped, now, day)

    def reserve_all(self, reservation: Reservation) -> Reservation:
        """For a request whose worker cannot be asked for less. What that takes beyond the limit keeps others out until it is
        settled, so that one such answer at a time can pass the limit."""
        asked = reservation.asked
        if asked.max_tokens == math.inf:
            return replace(
                reservation, is_capped=False
            )  # nobody knows the window: what was reserved is all that can be
        more = asked.max_tokens - reservation.completion_tokens
        self.completion.used += more
        self.completion_day.used += more
        return replace(reservation, completion_tokens=asked.max_tokens, is_capped=False)

    def _check_in_flight(self) -> None:
        if 0 < (most := self.rules.max_in_flight) <= self.in_flight:
            raise RateLimited(f"{most} requests are under way, which is the most", retry_after_s=1)

    def _check(self, asked: Asked, completion_tokens: float, now: float, wall_s: float, day: int) -> None:
        rules, prompt_tokens = self.rules, asked.prompt_tokens
        self.prompt_day.begin(day)
        self.completion_day.begin(day)
        if not (
            self.prompt_day.has_room(prompt_tokens, rules.prompt_tokens_per_day)
            and self.completion_day.has_room(completion_tokens, rules.completion_tokens_per_day)
        ):
            raise BudgetExceeded("the day's budget of tokens is spent", retry_after_s=_whole(DAY_S - wall_s % DAY_S))
        waits = [
            (self.prompt.wait_s(prompt_tokens, rules.prompt_tokens_per_minute, now), "prompt tokens"),
            (self.completion.wait_s(completion_tokens, rules.completion_tokens_per_minute, now), "completion tokens"),
        ]
        if not asked.is_entered:
            self._check_in_flight()
            waits.append((self.requests.wait_s(1.0, rules.requests_per_minute, now), "requests"))
        _require_no_wait(max(waits))

    def _left(self) -> float:
        """Completion tokens that no limit has seen used or reserved; infinite without limits."""
        rules = self.rules
        left = [
            limit - use.used
            for use, limit in (
                (self.completion, rules.completion_tokens_per_minute),
                (self.completion_day, rules.completion_tokens_per_day),
            )
            if limit is not None
        ]
        return max(1.0, min(left)) if left else math.inf

    def settle(self, reservation: Reservation, record: Record, now: float) -> None:
        """The request has ended, however it did. A request that no worker was sent counts as none."""
        asked = reservation.asked
        prompt, completion = self._taken(reservation, record)
        self._learn(record, completion)
        rules, age_s = self.rules, now - reservation.at
        if not asked.is_entered:
            self.leave()
            if not record.attempts:
                self.requests.settle(1.0, 0.0, rules.requests_per_minute, age_s)
        self.prompt.settle(asked.prompt_tokens, prompt, rules.prompt_tokens_per_minute, age_s)
        self.completion.settle(reservation.completion_tokens, completion, rules.completion_tokens_per_minute, age_s)
        self.prompt_day.settle(asked.prompt_tokens, prompt, reservation.day)
        self.completion_day.settle(reservation.completion_tokens, completion, reservation.day)

    def _taken(self, reservation: Reservation, record: Record) -> tuple[float, float]:
        """Prompt and completion tokens, as the worker counted. What it did not count is what was expected of the prompt, once
        it has that, and what the client was seen to get of the answer; of a whole answer nothing is seen before its end, and
        so it counts what the worker may have written until then."""
        if not record.was_sent:
            return 0.0, 0.0
        prompt = record.prompt_tokens or reservation.asked.prompt_tokens
        cached = min(record.actual_cached_tokens or 0, record.prompt_tokens)
        completion: float = record.completion_tokens
        if not completion:
            completion = min(record.delivered_tokens or _unseen(reservation.asked, record), reservation.most_tokens)
        return prompt - cached * (1.0 - self.rules.cached_token_weight), completion

    def _learn(self, record: Record, completion: float) -> None:
        totals = self.totals
        totals.requests += 1
        totals.prompt_tokens += record.prompt_tokens
        totals.cached_tokens += record.actual_cached_tokens or 0
        totals.completion_tokens += record.completion_tokens or int(record.delivered_tokens)
        if completion:
            self.mean_completion_tokens += NEWEST * (completion - self.mean_completion_tokens)

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


def _unseen(asked: Asked, record: Record) -> float:
    """What a worker may have written of a whole answer whose client left."""
    return 0.0 if record.stream else asked.answers * FASTEST_TOKENS_S * (record.ended_at - record.decided_at)


def _require_no_wait(longest: tuple[float, str]) -> None:
    wait_s, what = longest
    if wait_s > 0.0:
        raise RateLimited(f"too many {what} a minute", retry_after_s=_whole(wait_s))


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
