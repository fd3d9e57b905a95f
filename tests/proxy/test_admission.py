"""Room, waiting and being woken: with a fleet of its own, and no clock but the one that tests hold."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from router.config.routing import AdmissionConfig
from router.core.errors import BudgetExceeded, ModelUnavailable, NoWorkerAvailable, Overloaded, RateLimited
from router.core.fleet.facts import Facts
from router.core.fleet.member import Lease, Member
from router.core.fleet.ring import Ring
from router.core.fleet.seats import Seats, warm_wait_s
from router.core.request.request import Request, Tenant
from router.core.request.routes import Route
from router.core.tenants.tenant import EVERYBODY, TenantRules
from router.proxy.admission import Admission
from tests.core.fleet.test_fleet import addresses, bring_up, make_fleet, of, poll, report
from tests.core.tenants.test_quota import make_record
from tests.proxy.test_dispatch import make_request

NARROW = AdmissionConfig(
    max_worker_requests=1,
    max_worker_prefill_tokens=0,
    max_queued=100,
    max_queued_bytes=1 << 20,
    max_wait_s=60,
    no_worker_wait_s=60,
    warm_wait_s=60,
)


class Door:
    """An admission before two workers with one seat each, and the requests that came to it."""

    def __init__(self, hosts: str = "ab", **settings: Any) -> None:
        self.fleet, self.index = make_fleet(hosts)
        self.now = 100.0
        changed = replace(NARROW, **settings)
        self.admission = Admission(changed, self.fleet, lambda: self.now, lambda: self.now)
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[Lease]] = []

    def lease(self, host: str) -> Lease:
        return self.fleet.lease(of(self.fleet, host).position, 1.0, self.now, shows_first_token=True)

    def come(self, name: str = "", *, model: str = "m", rules: TenantRules = EVERYBODY) -> asyncio.Task[Lease]:
        """A request that takes a lease on the first worker with room, or waits for it."""
        task = asyncio.create_task(self._enter(name, make_request(model=model), rules))
        self.tasks.append(task)
        return task

    async def _enter(self, name: str, request: Request, rules: TenantRules) -> Lease:
        if not self.admission.has_room(request.model):
            await self.admission.wait_for_room(request, rules, make_record())
        self.order.append(name)
        positions = self.fleet.catalog.eligible(request.model).positions
        position = self.admission.seated_first(positions)[0]
        assert self.admission.has_seat(position)
        return self.fleet.lease(position, 1.0, self.now, shows_first_token=True)

    async def settle(self) -> None:
        """Let everything happen that can."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.settle()
        assert not self.admission.queue
        assert not self.admission.warm_waiting()
        assert self.fleet.on_capacity is None
        assert self.fleet.on_probe_ok is None


def rules(tenant: str, **members: Any) -> TenantRules:
    return TenantRules(tenant=Tenant(tenant), **members)


def end(lease: Lease) -> None:
    lease.__exit__(None, None, None)


async def test_where_there_is_room_nobody_waits_and_nothing_is_listened_to() -> None:
    door = Door()
    await door.come()
    await door.come()
    assert door.fleet.figures.in_flight == [1, 1]
    assert door.fleet.on_capacity is None
    await door.leave()


async def test_a_request_waits_until_a_lease_ends() -> None:
    door = Door()
    leases = door.lease("a"), door.lease("b")
    task = door.come()
    await door.settle()
    assert not task.done()
    end(leases[1])
    assert (await task).member is of(door.fleet, "b")
    await door.leave()


async def test_each_seat_wakes_one_and_in_turn_between_tenants() -> None:
    door = Door("a")
    lease = door.lease("a")
    for name in ("a1", "a2", "a3", "b1"):
        door.come(name, rules=rules(name[0]))
    await door.settle()
    for number in range(4):
        end(lease)
        await door.settle()
        assert len(door.order) == number + 1
        lease = next(iter(of(door.fleet, "a").leases))
    assert door.order == ["a1", "b1", "a2", "a3"]
    end(lease)
    await door.leave()


async def test_a_seat_is_kept_for_who_was_woken() -> None:
    """Between the wake and the lease nobody else may take it."""
    door = Door("a")
    lease = door.lease("a")
    door.come("first")
    await door.settle()
    end(lease)
    assert not door.admission.has_room("m")
    door.come("second")
    await door.settle()
    assert door.order == ["first"]
    await door.leave()


async def test_a_client_that_leaves_while_it_waits_leaves_the_queue_at_once() -> None:
    door = Door("a")
    lease = door.lease("a")
    gone, stays = door.come("gone"), door.come("stays")
    await door.settle()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert len(door.admission.queue) == 1
    end(lease)
    await stays
    assert door.order == ["stays"]
    await door.leave()


async def test_a_seat_whose_request_is_gone_before_it_wakes_goes_to_the_next() -> None:
    door = Door("a")
    lease = door.lease("a")
    gone, stays = door.come("gone"), door.come("stays")
    await door.settle()
    end(lease)
    gone.cancel()
    await stays
    assert door.order == ["stays"]
    await door.leave()


async def test_a_seat_that_was_not_taken_after_all_goes_to_the_next() -> None:
    """Whoever is woken for one worker may go to another."""
    door = Door("ab")
    of_a, of_b = door.lease("a"), door.lease("b")
    door.come("first")
    await door.settle()
    door.come("second")
    await door.settle()
    end(of_b)  # kept for the first, which takes the first worker with room
    end(of_a)
    await door.settle()
    assert sorted(door.order) == ["first", "second"]
    assert door.fleet.figures.in_flight == [1, 1]
    await door.leave()


async def test_waiting_ends_with_503_and_an_honest_time_to_come_back() -> None:
    door = Door("a", max_wait_s=0.001)
    door.lease("a")
    with pytest.raises(Overloaded) as raised:
        await door.come()
    assert 1 <= (raised.value.retry_after_s or 0) <= 60
    assert raised.value.retryable
    assert door.admission.refusals["too_late"] == 1
    await door.leave()


async def test_too_many_are_refused_at_once_and_never_another_tenants_first() -> None:
    door = Door("a", max_queued=2)
    door.lease("a")
    tasks = [door.come(rules=rules("a")) for _ in range(3)]
    await door.settle()
    assert [task.done() for task in tasks] == [False, False, True]
    assert isinstance(tasks[2].exception(), Overloaded)
    other = door.come(rules=rules("b"))
    await door.settle()
    assert [task.done() for task in (*tasks[:2], other)] == [False, True, False]
    assert door.admission.refusals["queue_full"] == 2
    tasks[1].exception()
    await door.leave()


async def test_a_load_report_that_shows_room_wakes_as_many_as_it_shows() -> None:
    door = Door("a", max_worker_requests=3)
    member = of(door.fleet, "a")
    poll(door.fleet, member, door.now, report(running=2, waiting=1))
    tasks = [door.come() for _ in range(4)]
    await door.settle()
    assert not any(task.done() for task in tasks)
    poll(door.fleet, member, door.now, report(running=1))
    await door.settle()
    assert [task.done() for task in tasks] == [True, True, False, False]
    await door.leave()


async def test_load_that_is_stale_counts_as_none() -> None:
    door = Door("a")
    member = of(door.fleet, "a")
    poll(door.fleet, member, door.now, report(running=5))
    task = door.come()
    await door.settle()
    door.fleet.expire_load(member, door.now + 1)
    await door.settle()
    assert not task.done()
    door.fleet.expire_load(member, door.now + 6)
    await task
    await door.leave()


async def test_a_worker_that_comes_up_takes_those_who_wait() -> None:
    door = Door("a")
    door.lease("a")
    task = door.come()
    await door.settle()
    door.fleet.set_members(addresses("ab"))
    bring_up(door.fleet, of(door.fleet, "b"))
    assert (await task).member is of(door.fleet, "b")
    await door.leave()


async def test_a_worker_that_serves_another_model_wakes_nobody() -> None:
    door = Door("a")
    door.lease("a")
    task = door.come()
    await door.settle()
    door.fleet.set_members(addresses("ab"))
    bring_up(door.fleet, of(door.fleet, "b"), model="other")
    await door.come("other", model="other")
    assert not task.done()
    await door.leave()


async def test_a_worker_that_learns_a_model_takes_those_who_wait_for_it() -> None:
    door = Door("ab")
    other = of(door.fleet, "b")
    door.fleet.set_models(other, {"other": {"id": "other"}})
    door.lease("a")
    task = door.come()
    await door.settle()
    door.fleet.set_models(other, {"m": {"id": "m"}})
    assert (await task).member is other
    await door.leave()


async def test_an_ejected_worker_has_no_room() -> None:
    door = Door("ab")
    lease, _ = door.lease("a"), door.lease("b")
    task = door.come()
    await door.settle()
    member = of(door.fleet, "a")
    assert member.health.on_death(door.now)
    door.fleet.on_health_changed(member)
    end(lease)
    await door.settle()
    assert not task.done()
    assert member.health.on_success(door.now)
    door.fleet.on_health_changed(member)
    await task
    await door.leave()


def eject(door: Door, host: str) -> Member:
    member = of(door.fleet, host)
    member.health.on_death(door.now)
    door.fleet.on_health_changed(member)
    return member


def wait_for_worker(door: Door, error: NoWorkerAvailable | ModelUnavailable) -> asyncio.Task[None]:
    return asyncio.create_task(
        door.admission.wait_for_worker(make_request(), EVERYBODY, make_record(), error),
    )


async def test_while_nobody_is_up_requests_wait_and_go_on_as_soon_as_somebody_is() -> None:
    door = Door("a", max_worker_requests=100)
    member = eject(door, "a")
    tasks = [wait_for_worker(door, NoWorkerAvailable("x")) for _ in range(5)]
    await door.settle()
    assert not any(task.done() for task in tasks)
    member.health.on_success(door.now)
    door.fleet.on_health_changed(member)
    await asyncio.gather(*tasks)
    await door.leave()


@pytest.mark.parametrize("budget_s", [0.0, 0.001])
async def test_when_nobody_comes_up_in_time_the_reason_is_told(budget_s: float) -> None:
    door = Door("a", no_worker_wait_s=budget_s)
    eject(door, "a")
    error = NoWorkerAvailable("x", retry_after_s=1)
    with pytest.raises(NoWorkerAvailable) as raised:
        await wait_for_worker(door, error)
    assert raised.value is error
    assert door.admission.refusals["no_worker"] == 1
    await door.leave()


async def test_an_ejected_worker_that_answers_its_probes_is_tried_with_one_request_at_a_time() -> None:
    door = Door("a", max_worker_requests=100)
    member = eject(door, "a")
    tasks = [wait_for_worker(door, NoWorkerAvailable("x")) for _ in range(3)]
    await door.settle()
    door.fleet.on_alive(member)
    door.fleet.on_alive(member)
    await door.settle()
    assert [task.done() for task in tasks] == [True, False, False]
    with door.lease("a"):
        door.fleet.on_alive(member)
        await door.settle()
        assert sum(task.done() for task in tasks) == 1
    await door.settle()
    assert sum(task.done() for task in tasks) == 1, "a lease that ends there says nothing of its health"
    door.fleet.on_alive(member)
    await door.settle()
    assert sum(task.done() for task in tasks) == 2
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await door.leave()


async def test_an_ejected_worker_is_not_tried_while_another_that_is_up_only_lacks_room() -> None:
    door = Door("ab")
    member = eject(door, "a")
    door.lease("b")
    task = door.come()
    await door.settle()
    door.fleet.on_alive(member)
    await door.settle()
    assert not task.done()
    await door.leave()


# Waiting for the warm one


def make_facts(door: Door, request: Request, seconds_per_token: float = 0.001) -> Facts:
    for position in range(len(door.fleet.figures.names)):
        door.fleet.figures.seconds_per_token[position] = seconds_per_token
    return Facts(
        fleet=door.fleet.figures,
        eligible=[0, 1],
        prompt_tokens=2000.0,
        earlier_tokens=0.0,
        anchor=1,
        ring=Ring({}),
        matches=door.index.match(request.fingerprint, 2000.0),
        session_worker=None,
    )


def test_a_warm_worker_is_worth_the_prefill_that_it_saves_and_no_more_than_allowed() -> None:
    door, request = Door("ab"), make_request()
    door.index.record(0, request.fingerprint)
    facts = make_facts(door, request)
    assert warm_wait_s(facts, 0, 1, 60.0) == pytest.approx(2.0)
    assert warm_wait_s(facts, 0, 1, 0.25) == 0.25
    assert warm_wait_s(facts, 1, 0, 60.0) == 0.0


class Warm:
    """A request whose ranking begins with a full worker that holds its prompt; the other has room."""

    def __init__(self, **settings: Any) -> None:
        self.door = Door("ab", **settings)
        self.request = make_request()
        self.lease = self.door.lease("a")
        self.record = make_record()

    def come(self, *, is_warm: bool = True) -> asyncio.Task[bool]:
        if is_warm:
            self.door.index.record(0, self.request.fingerprint)
        facts = make_facts(self.door, self.request)
        return asyncio.create_task(
            self.door.admission.wait_for_warm(facts, [0, 1], self.request, self.record),
        )


async def test_a_warm_worker_is_waited_for_and_a_seat_on_the_other_is_kept_meanwhile() -> None:
    warm = Warm()
    task = warm.come()
    await warm.door.settle()
    assert not warm.door.admission.has_seat(1)
    end(warm.lease)
    assert await task
    assert warm.door.admission.has_seat(0)
    assert warm.door.admission.has_seat(1)
    await warm.door.leave()


async def test_who_waits_for_a_warm_worker_was_let_in_before_those_in_the_queue() -> None:
    warm = Warm()
    task = warm.come()
    await warm.door.settle()
    queued = warm.door.come()
    await warm.door.settle()
    end(warm.lease)
    await task
    assert not queued.done()
    await queued
    await warm.door.leave()


async def test_after_the_time_that_is_worth_it_the_ranking_is_made_anew() -> None:
    warm = Warm(warm_wait_s=0.001)
    assert await warm.come()
    assert warm.door.admission.seated_first([0, 1]) == [1, 0]
    await warm.door.leave()


async def test_a_worker_that_is_not_warm_is_not_waited_for() -> None:
    warm = Warm()
    assert not await warm.come(is_warm=False)
    await warm.door.leave()


async def test_a_client_that_leaves_while_it_waits_for_a_warm_worker_gives_the_kept_seat_to_the_next() -> None:
    warm = Warm()
    task = warm.come()
    await warm.door.settle()
    queued = warm.door.come()
    await warm.door.settle()
    assert not queued.done()
    task.cancel()
    await queued
    await asyncio.gather(task, return_exceptions=True)
    await warm.door.leave()


# A tenant's limits


async def test_who_has_no_key_is_charged_nothing() -> None:
    door = Door()
    assert door.admission.limits.charge(make_request(), EVERYBODY) is None
    door.admission.limits.settle(None, make_record())
    assert not door.admission.limits.ledger.accounts


async def test_what_is_refused_by_a_limit_is_counted_and_what_passes_is_settled() -> None:
    door = Door()
    limited = rules("t", max_in_flight=1)
    reservation = door.admission.limits.charge(make_request(), limited)
    with pytest.raises(RateLimited):
        door.admission.limits.charge(make_request(), limited)
    door.admission.limits.settle(reservation, make_record(2048, 0, 5))
    assert door.admission.refusals["rate_limit_exceeded"] == 1
    account = door.admission.limits.ledger.accounts[Tenant("t")]
    assert (account.in_flight, account.totals.completion_tokens) == (0, 5)


@pytest.mark.parametrize(
    ("route", "prompt", "completion"),
    [(Route.EMBEDDINGS, 2048, 0), (Route.COUNT_TOKENS, 0, 0), (Route.CHAT, 2048, 256)],
)
async def test_a_route_is_charged_for_what_its_workers_do(route: Route, prompt: int, completion: int) -> None:
    generates = route is Route.CHAT
    request = msgspec.structs.replace(make_request(), route=route, max_answer_tokens=None if generates else 0)
    door = Door()
    reservation = door.admission.limits.charge(request, rules("t"))
    assert reservation is not None
    assert (reservation.asked.prompt_tokens, reservation.completion_tokens) == (prompt, completion)


def make_door(window: int) -> Door:
    door = Door()
    for member in door.fleet.members():
        door.fleet.set_models(member, {"m": {"id": "m", "max_model_len": window}})
    return door


async def test_an_answer_for_which_nobody_set_a_limit_is_made_shorter_where_that_fits_into_the_window() -> None:
    door = make_door(100_000)
    request = make_request()
    reservation = door.admission.limits.charge(request, rules("t", completion_tokens_per_day=20_000))
    assert reservation is not None
    assert reservation.is_capped
    assert b'"max_tokens":10000' in door.admission.limits.shortened(request, reservation).body


async def test_an_answer_that_may_not_fit_into_the_window_is_left_alone_and_reserves_all_that_it_may_take() -> None:
    door = make_door(3000)
    limited = rules("t", completion_tokens_per_day=800)
    reservation = door.admission.limits.charge(make_request(), limited)
    assert reservation is not None
    assert (reservation.completion_tokens, reservation.is_capped) == (3000 - 2048, False)
    with pytest.raises(BudgetExceeded):
        door.admission.limits.charge(make_request(), limited)


async def test_an_answer_with_a_limit_of_its_own_is_made_shorter_however_small_the_window_is() -> None:
    door = make_door(2100)
    request = msgspec.structs.replace(make_request(), max_answer_tokens=5000)
    reservation = door.admission.limits.charge(request, rules("t", completion_tokens_per_day=800))
    assert reservation is not None
    assert reservation.is_capped


# Seats


def test_a_worker_has_as_many_seats_as_its_limit_exceeds_what_it_has() -> None:
    door = Door("ab")
    seats = Seats(door.fleet.figures, 4)
    door.lease("a")
    poll(door.fleet, of(door.fleet, "a"), 1.0, report(running=2))
    assert (seats.is_free(0), seats.is_free(1)) == (True, True)
    seats.keep(0)
    seats.keep(0)
    assert (seats.is_free(0), seats.first_free([0, 1]), seats.is_idle(1)) == (False, 1, True)
    seats.release(0)
    assert (seats.is_free(0), seats.first_free([0, 1]), seats.is_idle(0)) == (True, 0, False)


def test_without_a_limit_there_is_always_a_seat() -> None:
    door = Door("a")
    poll(door.fleet, of(door.fleet, "a"), 1.0, report(running=10**9))
    assert Seats(door.fleet.figures, 0).is_free(0)


def test_a_worker_that_prefills_enough_has_no_room_until_a_first_token_is_there() -> None:
    door = Door("a")
    seats = Seats(door.fleet.figures, 0, max_prefill_tokens=10)
    lease = door.fleet.lease(0, 10.0, door.now, shows_first_token=True)
    assert not seats.is_free(0)
    lease.on_first_token(door.now)
    assert seats.is_free(0)
    seats.keep(0)
    assert not seats.is_free(0)


async def test_a_first_token_wakes_who_waits_for_a_prefill_to_end() -> None:
    door = Door("a", max_worker_requests=0, max_worker_prefill_tokens=1)
    lease = door.lease("a")
    tasks = [door.come(), door.come()]
    await door.settle()
    assert not any(task.done() for task in tasks)
    lease.on_first_token(door.now)
    await door.settle()
    assert [task.done() for task in tasks] == [True, False], "its own prefill keeps the next one away"
    tasks[0].result().on_first_token(door.now)
    await tasks[1]
    await door.leave()
