"""What a tenant's limits let pass, and when they say to come back."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.errors import BudgetExceeded, RateLimited
from router.core.request.record import Record
from router.core.request.request import Tenant
from router.core.request.routes import Route
from router.core.tenants.buckets import Bucket
from router.core.tenants.quota import (
    DAY_S,
    FASTEST_TOKENS_S,
    INITIAL_COMPLETION_TOKENS,
    Account,
    Asked,
    Ledger,
    Reservation,
)
from router.core.tenants.tenant import TenantRules

NOON = 20_000 * DAY_S + DAY_S / 2
NOW = 1000.0


def make_rules(**limits: Any) -> TenantRules:
    return TenantRules(tenant=Tenant("t"), **limits)


def make_record(prompt: int = 0, cached: int = 0, completion: int = 0, **members: Any) -> Record:
    found = {"status": 200, "first_byte_at": 1.0, "attempts": 1, "was_sent": True, "stream": True, **members}
    return Record(
        route=Route.CHAT,
        model="m",
        policy="p",
        request_id="r",
        started_at=0.0,
        prompt_tokens=prompt,
        actual_cached_tokens=cached,
        completion_tokens=completion,
        **found,
    )


class Tenancy:
    """An account and its clocks."""

    def __init__(self, **limits: Any) -> None:
        self.rules = make_rules(**limits)
        self.account = Account(self.rules)
        self.now = NOW
        self.wall_s = NOON

    def ask(self, prompt: float = 100.0, most: float = math.inf) -> Reservation:
        return self.account.reserve(self.rules, Asked(prompt, most), self.now, self.wall_s)

    def end(self, reservation: Reservation, record: Record | None = None) -> None:
        self.account.settle(reservation, record or make_record(100, 0, 10), self.now)

    def left(self) -> dict[str, float]:
        return {kind: left for kind, left, _ in self.account.day_tokens(self.wall_s)}

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.wall_s += seconds

    def retry_after(self, prompt: float = 100.0) -> int:
        with pytest.raises(RateLimited) as raised:
            self.ask(prompt)
        assert raised.value.retry_after_s is not None
        return raised.value.retry_after_s


def test_a_tenant_of_which_nothing_is_said_has_64_requests_under_way_at_the_most() -> None:
    tenancy = Tenancy()
    for _ in range(64):
        tenancy.ask()
    assert tenancy.retry_after() == 1


def test_0_in_flight_stands_for_any_number() -> None:
    tenancy = Tenancy(max_in_flight=0)
    for _ in range(1000):
        tenancy.ask()


def test_without_limits_everything_passes_and_is_counted() -> None:
    tenancy = Tenancy()
    for _ in range(1000):
        tenancy.end(tenancy.ask(), make_record(90, 30, 7))
    totals = tenancy.account.totals
    assert (totals.requests, totals.prompt_tokens, totals.cached_tokens) == (1000, 90_000, 30_000)
    assert totals.completion_tokens == 7000


def test_no_more_than_so_many_are_in_flight_at_once() -> None:
    tenancy = Tenancy(max_in_flight=2)
    first, _second = tenancy.ask(), tenancy.ask()
    assert tenancy.retry_after() == 1
    tenancy.end(first)
    tenancy.ask()


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one() -> None:
    tenancy = Tenancy(requests_per_minute=6)
    for _ in range(6):
        tenancy.ask()
    assert tenancy.retry_after() == 10
    tenancy.wait(10)
    tenancy.ask()
    assert tenancy.retry_after() == 10


@given(st.integers(1, 200), st.integers(1, 5000), st.lists(st.floats(0, 5000), min_size=1, max_size=20))
def test_one_more_passes_after_the_seconds_that_were_named(requests: int, tokens: int, prompts: list[float]) -> None:
    tenancy = Tenancy(requests_per_minute=requests, prompt_tokens_per_minute=tokens)
    for prompt in prompts:
        try:
            tenancy.ask(prompt)
        except RateLimited as limited:
            tenancy.wait(limited.retry_after_s or 0)
            tenancy.ask(prompt)


def test_a_refused_request_takes_nothing() -> None:
    tenancy = Tenancy(requests_per_minute=10, prompt_tokens_per_minute=1000)
    tenancy.ask(900)
    for _ in range(50):
        tenancy.retry_after(200)
    for _ in range(9):
        tenancy.ask(1)
    assert tenancy.account.in_flight == 10


def test_what_was_reserved_too_much_is_given_back() -> None:
    tenancy = Tenancy(prompt_tokens_per_minute=1000)
    tenancy.end(tenancy.ask(1000), make_record(100))
    tenancy.ask(900)
    assert tenancy.retry_after(60) == 4


def test_what_was_reserved_too_little_is_taken_afterwards() -> None:
    tenancy = Tenancy(completion_tokens_per_minute=600)
    tenancy.end(tenancy.ask(), make_record(100, 0, 6000))
    expected = tenancy.account.mean_completion_tokens
    assert tenancy.retry_after() == pytest.approx((6000 - 600 + expected) / 10, abs=1)


def test_a_slow_answer_gives_nothing_back_that_was_refilled_meanwhile() -> None:
    tenancy = Tenancy(prompt_tokens_per_minute=600)
    slow = tenancy.ask(600)
    tenancy.wait(60)
    tenancy.ask(600)
    tenancy.end(slow, make_record(1))
    assert tenancy.retry_after(600) == 60


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(0, 120))
def test_settling_never_leaves_more_room_than_had_it_been_known_before(
    reserved: float, actual: float, age_s: float
) -> None:
    settled, known = Bucket(), Bucket()
    for bucket, amount in ((settled, reserved), (known, actual)):
        bucket.wait_s(amount, 600, 0.0)
        bucket.used += amount
        bucket.wait_s(0, 600, age_s)
    settled.settle(reserved, actual, 600, age_s)
    assert settled.used >= known.used - 1e-6


def test_cached_tokens_count_for_less() -> None:
    tenancy = Tenancy(prompt_tokens_per_minute=1000, cached_token_weight=0.25)
    tenancy.end(tenancy.ask(1000), make_record(1000, 800))
    tenancy.ask(600)
    assert tenancy.retry_after(100) > 0


def test_a_request_larger_than_the_limit_passes_once_nothing_is_in_use_and_is_paid_for_later() -> None:
    tenancy = Tenancy(prompt_tokens_per_minute=100)
    tenancy.ask(300)
    assert tenancy.retry_after(300) == 180
    assert tenancy.retry_after(50) == 150


def test_a_days_budget_ends_at_midnight_utc() -> None:
    tenancy = Tenancy(prompt_tokens_per_day=1000)
    tenancy.end(tenancy.ask(900), make_record(900))
    with pytest.raises(BudgetExceeded) as raised:
        tenancy.ask(200)
    assert raised.value.retry_after_s == DAY_S / 2
    assert not raised.value.retryable
    tenancy.wait(DAY_S / 2)
    tenancy.ask(200)


def test_a_clock_that_is_put_back_begins_no_day_anew() -> None:
    tenancy = Tenancy(prompt_tokens_per_day=1000)
    tenancy.end(tenancy.ask(900), make_record(900))
    tenancy.wall_s -= DAY_S
    with pytest.raises(BudgetExceeded):
        tenancy.ask(200)


def test_what_began_yesterday_takes_nothing_from_today() -> None:
    tenancy = Tenancy(completion_tokens_per_day=10_000)
    late = tenancy.ask()
    tenancy.wait(DAY_S)
    tenancy.end(tenancy.ask(), make_record(1, 0, 100))
    tenancy.end(late, make_record(1, 0, 9000))
    assert [left for _, left, _ in tenancy.account.day_tokens(tenancy.wall_s)] == [9900]


def test_new_limits_hold_at_once_and_forget_nothing() -> None:
    tenancy = Tenancy(requests_per_minute=60)
    for _ in range(30):
        tenancy.ask()
    tenancy.rules = make_rules(requests_per_minute=30)
    assert tenancy.retry_after() == 2
    tenancy.rules = make_rules(requests_per_minute=120)
    tenancy.ask()


def test_a_request_that_no_worker_was_sent_counts_as_none() -> None:
    tenancy = Tenancy(requests_per_minute=1, prompt_tokens_per_day=100, completion_tokens_per_minute=10)
    tenancy.end(tenancy.ask(100), make_record(status=503, first_byte_at=0.0, attempts=0, was_sent=False))
    tenancy.ask(100)


def test_what_its_worker_refused_takes_no_tokens() -> None:
    tenancy = Tenancy(prompt_tokens_per_day=100)
    tenancy.end(tenancy.ask(100), make_record(status=400, was_sent=False))
    tenancy.ask(100)


def test_a_prompt_is_charged_once_a_worker_has_it_although_its_client_left_before_the_first_byte() -> None:
    tenancy = Tenancy(prompt_tokens_per_day=100)
    tenancy.end(tenancy.ask(100), make_record(status=499, first_byte_at=0.0))
    with pytest.raises(BudgetExceeded):
        tenancy.ask(100)


def test_a_stream_that_broke_is_charged_for_what_was_seen_of_it() -> None:
    tenancy = Tenancy(prompt_tokens_per_day=1000, completion_tokens_per_day=10_000)
    tenancy.end(tenancy.ask(100), make_record(delivered_tokens=500))
    tenancy.end(tenancy.ask(100), make_record())
    assert tenancy.left() == {"prompt": 800, "completion": 9500}


def make_left(seconds: float) -> Record:
    """Of a whole answer whose client left so long after its worker was asked."""
    return make_record(stream=False, status=499, first_byte_at=0.0, decided_at=NOW, ended_at=NOW + seconds)


def test_a_whole_answer_that_nobody_waited_for_is_charged_for_what_its_worker_may_have_written() -> None:
    tenancy = Tenancy(prompt_tokens_per_day=1000, completion_tokens_per_day=10_000)
    tenancy.end(tenancy.ask(100), make_left(2.0))
    assert tenancy.left() == {"prompt": 900, "completion": 10_000 - 2.0 * FASTEST_TOKENS_S}


def test_a_whole_answer_that_nobody_waited_for_is_charged_no_more_than_was_asked_of_its_worker() -> None:
    tenancy = Tenancy(completion_tokens_per_day=10_000)
    tenancy.end(tenancy.ask(most=300), make_left(60.0))
    assert tenancy.left() == {"completion": 9700}


def test_short_answers_before_do_not_make_left_ones_cheap() -> None:
    tenancy = Tenancy(completion_tokens_per_day=20_000)
    for _ in range(60):
        tenancy.end(tenancy.ask(most=1), make_record(5, 0, 1))
    left = 0
    with suppress(BudgetExceeded):
        while left < 100:
            tenancy.end(tenancy.ask(most=5000), make_left(10.0))
            left += 1
    assert left < 50


def test_each_answer_of_a_request_is_reserved_a_token_at_least() -> None:
    tenancy = Tenancy(completion_tokens_per_day=20_000)
    for _ in range(200):
        tenancy.end(tenancy.ask(most=1), make_record(5, 0, 1))
    many = Asked(1.0, math.inf, answers=8192)
    reserved = [tenancy.account.reserve(tenancy.rules, many, NOW, NOON) for _ in range(2)]
    assert sum(each.completion_tokens for each in reserved) <= 19_800
    assert min(each.completion_tokens for each in reserved) >= 8192
    with pytest.raises(BudgetExceeded):
        tenancy.account.reserve(tenancy.rules, many, NOW, NOON)


def test_an_answer_that_cannot_be_made_shorter_keeps_others_out_until_it_is_settled() -> None:
    tenancy = Tenancy(completion_tokens_per_day=20_000)
    whole = tenancy.account.reserve_all(tenancy.ask(most=38_000))
    assert (whole.completion_tokens, whole.is_capped) == (38_000, False)
    with pytest.raises(BudgetExceeded):
        tenancy.ask(most=1)
    tenancy.end(whole, make_record(1, 0, 500))
    assert tenancy.left() == {"completion": 19_500}


@pytest.mark.parametrize("answer", [make_record(0, 0, 500), make_record(100, 0, 0, delivered_tokens=500)])
def test_what_a_worker_did_not_count_is_charged_as_seen_beside_what_it_did(answer: Record) -> None:
    tenancy = Tenancy(prompt_tokens_per_day=1000, completion_tokens_per_day=10_000)
    tenancy.end(tenancy.ask(100), answer)
    assert tenancy.left() == {"prompt": 900, "completion": 9500}


def test_an_answer_that_looks_longer_than_its_worker_was_asked_for_is_charged_as_asked() -> None:
    tenancy = Tenancy(completion_tokens_per_day=10_000)
    tenancy.end(tenancy.ask(most=100), make_record(delivered_tokens=4000))
    assert tenancy.left() == {"completion": 9900}


def test_more_cached_tokens_than_the_prompt_has_give_nothing_back() -> None:
    tenancy = Tenancy(prompt_tokens_per_day=1000, cached_token_weight=0.0)
    tenancy.end(tenancy.ask(500), make_record(500))
    tenancy.end(tenancy.ask(100), make_record(100, 5000))
    assert tenancy.left() == {"prompt": 500}


@given(st.lists(st.tuples(st.sampled_from(["ask", "end"]), st.floats(0, 1), st.integers(1, 50_000)), max_size=60))
def test_answers_no_longer_than_was_reserved_never_pass_the_limit_however_short_those_before_were(
    steps: list[tuple[str, float, int]],
) -> None:
    tenancy = Tenancy(completion_tokens_per_day=20_000)
    under_way: list[Reservation] = []
    got = 0.0
    for step, share, most in steps:
        if step == "end" and under_way:
            reservation = under_way.pop()
            answer = int(share * reservation.completion_tokens)
            got += answer
            tenancy.end(reservation, make_record(1, 0, answer))
            continue
        with suppress(BudgetExceeded, RateLimited):
            under_way.append(tenancy.ask(1.0, most))
        assert got + sum(each.completion_tokens for each in under_way) <= 20_000


def test_one_answer_leaves_room_for_others() -> None:
    tenancy = Tenancy(completion_tokens_per_minute=60_000)
    reserved = [tenancy.ask(most=100_000).completion_tokens for _ in range(40)]
    assert reserved[0] == 30_000
    assert min(reserved) >= INITIAL_COMPLETION_TOKENS


def test_an_answer_that_asks_for_little_reserves_no_more_and_is_left_alone() -> None:
    tenancy = Tenancy(completion_tokens_per_day=20_000)
    reservation = tenancy.ask(most=16)
    assert (reservation.completion_tokens, reservation.is_capped) == (16, False)


def test_without_limits_no_answer_is_made_shorter() -> None:
    assert not Tenancy().ask(most=math.inf).is_capped


def test_a_request_that_entered_by_another_door_is_counted_once() -> None:
    tenancy = Tenancy(requests_per_minute=10, max_in_flight=1)
    tenancy.account.enter(tenancy.rules, tenancy.now)
    reservation = tenancy.account.reserve(tenancy.rules, Asked(1.0, is_entered=True), tenancy.now, tenancy.wall_s)
    tenancy.end(reservation)
    assert tenancy.account.in_flight == 1
    tenancy.account.leave()
    assert (tenancy.account.in_flight, tenancy.account.requests.used) == (0, 1.0)


def test_a_tenants_own_answers_teach_what_to_expect() -> None:
    tenancy = Tenancy()
    for _ in range(200):
        tenancy.end(tenancy.ask(), make_record(10, 0, 1000))
    assert tenancy.account.mean_completion_tokens == pytest.approx(1000, rel=0.01)


def test_tenants_that_are_no_more_are_forgotten_when_nothing_of_theirs_is_under_way() -> None:
    ledger = Ledger()
    busy, idle, kept = (TenantRules(tenant=Tenant(name)) for name in ("busy", "idle", "kept"))
    reservation = ledger.account(busy).reserve(busy, Asked(1.0), NOW, NOON)
    ledger.account(idle)
    account = ledger.account(kept)
    ledger.keep({Tenant("kept")})
    assert list(ledger.accounts) == ["busy", "kept"]
    reservation.account.settle(reservation, make_record(), NOW)
    ledger.keep({Tenant("kept")})
    assert ledger.accounts == {Tenant("kept"): account}
