"""How much of its limits a tenant has used. Pure: both clocks are passed in. Every figure holds for one replica.

Before a request starts, it *reserves* from each limit the most that it may take, or it reserves nothing. When it has ended, the
reservation is settled by what it took. Limits are passed in with each call, and only the use is kept: new limits hold at once.
A prompt that is larger than a whole limit passes when nothing of the limit is in use. It overdraws the limit, and its tenant
waits longer afterwards. An answer is never longer than its reservation: if its request asks for more, the worker is asked for
less.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from router.core.errors import BudgetExceeded, RateLimited
from router.core.request.record import Record
from router.core.request.request import Tenant
from router.core.tenants.buckets import Bucket, Day
from router.core.tenants.tenant import TenantRules

DAY_S = 86_400
INITIAL_COMPLETION_TOKENS = 256.0
"""Expected tokens of an answer, before its tenant has had any answer."""
FASTEST_TOKENS_S = 500.0
"""No worker writes one answer faster."""
NEWEST = 0.05
"""Weight of the newest answer in the mean."""
SHARE = 0.5
"""One answer may take this share of the rest of a limit, divided by the requests under way, and never less than the mean. So
all answers together stay within the limit, and a long one leaves room for the others."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The most that one request may take of its tenant's limits, in tokens."""

    prompt_tokens: float
    max_tokens: float = 0.0
    """For all answers together; 0: the route generates none; infinite: unknown."""
    answers: int = 1
    """Each takes at least one token."""
    is_entered: bool = False
    """Counted among the tenant's requests already."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The part of its tenant's limits that one request holds until ``Account.settle``."""

    account: Account
    asked: Asked
    completion_tokens: float
    """If ``is_capped``, the worker must not be asked for more."""
    is_capped: bool
    at: float
    day: int

    @property
    def most_tokens(self) -> float:
        """The most that all its answers together can have."""
        return self.completion_tokens if self.is_capped else self.asked.max_tokens

    @property
    def most_of_each(self) -> int:
        """If ``is_capped``: tokens to ask the worker for, for each answer."""
        return max(1, int(self.completion_tokens / self.asked.answers))


@dataclass(slots=True)
class Totals:
    """Counts since the account was opened. Tokens are as workers counted; the prompt's include the cached ones."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    shortened: int = 0
    """Requests whose worker was asked for a shorter answer than the client wanted."""


@dataclass(slots=True, eq=False)
class Account:
    """One tenant's use of its limits. ``rules``: those of the newest request."""

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
        """A request begins; call ``leave`` when it has ended. Raises RateLimited, and then counts nothing."""
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
        """For a request whose worker cannot be asked for less. Until it is settled, its tokens beyond the limit keep others
        out: only one such answer at a time can pass the limit."""
        asked = reservation.asked
        if asked.max_tokens == math.inf:
            return replace(reservation, is_capped=False)  # the window is unknown, so no more can be reserved
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
        """Completion tokens that are neither used nor reserved, by the tighter limit; infinite without limits."""
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
        """The request has ended, well or not. A request that was sent to no worker counts as none."""
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
        """Prompt and completion tokens. If the worker did not count them, the prompt takes what was expected of it, and the
        answer what the client was seen to get. A whole answer shows nothing before its end, so it takes what the worker may
        have written by then."""
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
        """For each budget of a day: its kind, the tokens left, and the limit."""
        number = int(wall_s // DAY_S)
        for kind, day, limit in (
            ("prompt", self.prompt_day, self.rules.prompt_tokens_per_day),
            ("completion", self.completion_day, self.rules.completion_tokens_per_day),
        ):
            if limit is not None:
                day.begin(number)
                yield kind, max(0.0, limit - day.used), limit


class Ledger:
    """An account for each tenant that has a key and has sent a request. It is bounded by the number of configured tenants: call
    ``keep`` when those change."""

    def __init__(self) -> None:
        self.accounts: dict[Tenant, Account] = {}

    def account(self, rules: TenantRules) -> Account:
        account = self.accounts.get(rules.tenant)
        if account is None:
            account = self.accounts[rules.tenant] = Account(rules)
        return account

    def keep(self, tenants: Collection[Tenant]) -> None:
        """Forget the other tenants, except those with requests under way, which the next call forgets."""
        for tenant, account in tuple(self.accounts.items()):
            if tenant not in tenants and not account.in_flight:
                del self.accounts[tenant]


def _unseen(asked: Asked, record: Record) -> float:
    """The most that a worker may have written of a whole answer whose client left."""
    return 0.0 if record.stream else asked.answers * FASTEST_TOKENS_S * (record.ended_at - record.decided_at)


def _require_no_wait(longest: tuple[float, str]) -> None:
    wait_s, what = longest
    if wait_s > 0.0:
        raise RateLimited(f"too many {what} a minute", retry_after_s=_whole(wait_s))


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
