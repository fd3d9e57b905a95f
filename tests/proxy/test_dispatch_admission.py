"""Dispatch where room is short, or nobody is up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.config.routing import AdmissionConfig
from router.core.errors import NoWorkerAvailable, RateLimited, RouterError
from router.core.request.attempt import WorkerDied
from router.core.request.record import Record
from router.core.request.request import Tenant
from router.core.tenants.tenant import TenantRules
from tests.proxy.test_dispatch import House, make_request


def make_house(hosts: str = "ab", **settings: Any) -> House:
    given = {
        "max_worker_requests": 1,
        "max_worker_prefill_tokens": 0,
        "max_queued": 10,
        "max_queued_bytes": 1 << 20,
        "max_wait_s": 60.0,
        "no_worker_wait_s": 60.0,
        "warm_wait_s": 0.0,
        **settings,
    }
    return House(hosts, admission=AdmissionConfig(**given))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def begin(house: House, **members: Any) -> asyncio.Task[Record]:
    return asyncio.create_task(house.send(make_request(**members)))


async def test_the_best_that_has_room_is_taken_where_the_first_has_none() -> None:
    house = make_house()
    with house.fleet.lease(0, 1.0, house.now, shows_first_token=False):
        await house.send()
    assert house.upstream.asked == ["b"]
    house.assert_nothing_is_held()


async def test_a_request_waits_while_nobody_has_room_and_says_how_long_it_did() -> None:
    house = make_house("a")
    with house.fleet.lease(0, 1.0, house.now, shows_first_token=False):
        task = begin(house)
        await settle()
        assert house.upstream.asked == []
        house.now += 3.0
    record = await task
    assert record.queued_s == 3.0
    assert record.decided_at == house.now
    house.assert_nothing_is_held()


async def test_a_retry_asks_for_no_room() -> None:
    house = make_house("abc")
    house.upstream.answers = {"a": WorkerDied("x")}
    with house.fleet.lease(1, 1.0, house.now, shows_first_token=False):
        record = await house.send()
    assert house.upstream.asked == ["a", "b"]
    assert record.queued_s == 0.0
    house.assert_nothing_is_held()


async def test_a_warm_worker_that_gets_room_in_time_is_taken() -> None:
    house = make_house(warm_wait_s=60.0)
    house.index.record(0, make_request().fingerprint)
    with house.fleet.lease(0, 1.0, house.now, shows_first_token=False):
        task = begin(house)
        await settle()
        assert house.upstream.asked == []
    await task
    assert house.upstream.asked == ["a"]
    house.assert_nothing_is_held()


async def test_a_warm_worker_without_room_is_waited_for_once() -> None:
    house = make_house(warm_wait_s=0.001)
    house.index.record(0, make_request().fingerprint)
    with house.fleet.lease(0, 1.0, house.now, shows_first_token=False):
        await house.send()
    assert house.upstream.asked == ["b"]
    house.assert_nothing_is_held()


async def test_a_request_whose_fleet_died_goes_on_when_a_worker_is_up() -> None:
    house = make_house(max_worker_requests=0)
    house.upstream.answers = dict.fromkeys("ab", WorkerDied("x"))
    task = begin(house)
    await settle()
    assert house.upstream.asked == ["a", "b"]
    house.upstream.answers = {}
    member = house.member("b")
    member.health.on_success(house.now)
    house.fleet.on_health_changed(member)
    record = await task
    assert house.upstream.asked == ["a", "b", "b"]
    assert record.status == 200
    house.assert_nothing_is_held()


async def test_an_ejected_worker_that_answers_probes_is_tried_by_those_who_wait_and_brings_all_of_them_on() -> None:
    house = make_house("a", max_worker_requests=0)
    house.upstream.answers = {"a": WorkerDied("x")}
    tasks = [begin(house) for _ in range(4)]
    await settle()
    asked = len(house.upstream.asked)
    house.fleet.on_alive(house.member("a"))
    await settle()
    assert len(house.upstream.asked) == asked + 1, "one at a time"
    house.upstream.answers = {}
    house.fleet.on_alive(house.member("a"))
    await asyncio.gather(*tasks)
    assert house.states() == ["up"]
    house.assert_nothing_is_held()


async def test_when_nobody_comes_up_the_last_reason_is_told_and_nothing_is_held() -> None:
    house = make_house(no_worker_wait_s=0.001)
    house.upstream.answers = dict.fromkeys("ab", WorkerDied("x"))
    with pytest.raises(NoWorkerAvailable) as raised:
        await house.send()
    assert raised.value.retry_after_s == 1
    house.assert_nothing_is_held()


@pytest.mark.parametrize("phase", ["queued", "warm", "nobody up"])
async def test_a_client_that_leaves_while_it_waits_holds_nothing(phase: str) -> None:
    house = make_house("a" if phase == "queued" else "ab", warm_wait_s=60.0)
    rules = TenantRules(tenant=Tenant("t"), max_in_flight=1)
    house.index.record(0, make_request().fingerprint)
    if phase == "nobody up":
        house.upstream.answers = dict.fromkeys("ab", WorkerDied("x"))
    lease = house.fleet.lease(0, 1.0, house.now, shows_first_token=False)
    task = asyncio.create_task(house.dispatcher.dispatch(make_request(), house.client, house.now, rules))
    await settle()
    assert not task.done()
    assert house.admission.queue or house.admission.warm_waiting()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lease.__exit__(None, None, None)
    await settle()
    assert house.records[-1].status == 499
    assert house.admission.limits.ledger.accounts[Tenant("t")].in_flight == 0
    assert not house.admission.queue
    assert not house.admission.warm_waiting()
    assert house.admission.has_seat(0)
    house.assert_nothing_is_held()


async def test_a_tenant_over_its_limit_reaches_nobody_and_is_recorded() -> None:
    house = make_house()
    rules = TenantRules(tenant=Tenant("t"), requests_per_minute=1)
    await house.dispatcher.dispatch(make_request(), house.client, house.now, rules)
    with pytest.raises(RateLimited):
        await house.dispatcher.dispatch(make_request(), house.client, house.now, rules)
    assert house.upstream.asked == ["a"]
    assert [record.status for record in house.records] == [200, 429]
    house.assert_nothing_is_held()


async def test_a_prompt_that_workers_had_is_charged_once_however_the_request_ends() -> None:
    house = make_house(no_worker_wait_s=0.0)
    rules = TenantRules(tenant=Tenant("t"), prompt_tokens_per_day=10_000)
    await house.dispatcher.dispatch(make_request(), house.client, house.now, rules)
    house.upstream.answers = dict.fromkeys("ab", WorkerDied("x"))
    with pytest.raises(RouterError):
        await house.dispatcher.dispatch(make_request(), house.client, house.now, rules)
    account = house.admission.limits.ledger.accounts[Tenant("t")]
    assert list(account.day_tokens(house.now)) == [("prompt", 10_000 - 2 * 2048, 10_000)]
    assert account.in_flight == 0
