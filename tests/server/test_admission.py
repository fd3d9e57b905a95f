"""What clients see of limits, queues and outages, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.app.serve import Running
from router.core.request.request import Tenant
from router.core.tenants.tenant import TenantRules, make_caller
from router.server.auth import OpenGate
from router.simulator import SimulatorSettings, start_fleet
from tests.e2e.routed import connected, get_admin, post, routed, until
from tests.e2e.streams import CHAT, answering, hang
from tests.upstream.scripted import Asked, Peer, answer, scripted, unused_url

PATH = "/v1/chat/completions"
USED = b'{"usage":{"prompt_tokens":40,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":30}}}'


def become(router: Running, **limits: Any) -> None:
    """Whoever asks is this tenant."""
    router.data._gate = OpenGate(make_caller(TenantRules(tenant=Tenant("acme"), **limits), b""))


async def samples(router: Running) -> dict[tuple[str, ...], float]:
    text = (await get_admin(router, "/metrics")).body.decode()
    return {
        (sample.name.removeprefix("warmroute_"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_over_its_rate_a_tenant_is_told_when_to_come_back_and_no_worker_hears_of_it() -> None:
    async with scripted() as worker, routed(worker.url) as router:
        become(router, requests_per_minute=1)
        assert (await post(router, PATH, CHAT)).status == 200
        found = await post(router, PATH, CHAT)
        assert (found.status, found.error["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(found.headers["retry-after"]) <= 60
        assert "x-should-retry" not in found.headers
        assert len(worker.asked) == 1


async def test_a_spent_budget_is_not_worth_a_retry() -> None:
    async with scripted(answering(USED)) as worker, routed(worker.url) as router:
        become(router, prompt_tokens_per_day=20)
        assert (await post(router, PATH, CHAT)).status == 200
        found = await post(router, PATH, CHAT)
        assert (found.status, found.error["code"]) == (429, "budget_exceeded")
        assert 1 <= int(found.headers["retry-after"]) <= 86_400
        assert found.headers["x-should-retry"] == "false"


async def test_a_tenant_is_charged_what_its_worker_counted() -> None:
    async with scripted(answering(USED)) as worker, routed(worker.url) as router:
        become(router, prompt_tokens_per_day=1000, cached_token_weight=0.5)
        await post(router, PATH, CHAT)
        found = await samples(router)
        assert found["tenant_day_tokens_left", "acme", "prompt"] == 1000 - 10 - 30 * 0.5
        assert found["tenant_day_tokens", "acme", "prompt"] == 1000
        assert found["tenant_tokens_total", "acme", "cached"] == 30
        assert found["tenant_tokens_total", "acme", "completion"] == 5
        assert found["tenant_requests_total", "acme"] == 1
        assert found["tenant_in_flight", "acme"] == 0


async def test_who_has_no_key_is_no_label() -> None:
    async with scripted(answering(USED)) as worker, routed(worker.url) as router:
        await post(router, PATH, CHAT)
        assert not [name for name in await samples(router) if name[0].startswith("tenant_")]


async def test_beyond_the_queue_requests_are_refused_at_once() -> None:
    narrow = {"admission__max_worker_requests": 1, "admission__max_queued": 0}
    async with scripted(hang) as worker, routed(worker.url, **narrow) as router, connected(router) as client:
        await client.post(PATH, CHAT)
        await until(lambda: worker.asked)
        found = await post(router, PATH, CHAT)
        assert (found.status, found.error["code"]) == (503, "overloaded")
        assert 1 <= int(found.headers["retry-after"]) <= 60
        assert (await samples(router))["admission_refusals_total", "queue_full"] == 1
        client.leave()


async def test_requests_wait_for_room_and_are_served_in_turn() -> None:
    most = 0
    inside = 0

    async def take_a_while(_asked: Asked, peer: Peer) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.002)
        inside -= 1
        await peer.send(answer(USED))

    async with scripted(take_a_while) as worker, routed(worker.url, admission__max_worker_requests=2) as router:
        found = await asyncio.gather(*[post(router, PATH, CHAT) for _ in range(30)])
        assert {each.status for each in found} == {200}
        assert most == 2
        counts = await samples(router)
        assert 20 <= counts["queue_wait_seconds_count",] <= 28
        assert counts["queue_depth",] == 0


async def test_a_client_that_leaves_while_it_waits_never_reaches_a_worker() -> None:
    one = {"admission__max_worker_requests": 1}
    async with scripted(hang) as worker, routed(worker.url, **one) as router, connected(router) as first:
        await first.post(PATH, CHAT)
        await until(lambda: worker.asked)
        async with connected(router) as waits:
            await waits.post(PATH, CHAT)
            await until(lambda: router.data.live == 2)
        await until(lambda: router.data.live == 1)
        assert (await samples(router))["queue_depth",] == 0
        first.leave()
        await until(lambda: not router.data.live)
        assert len(worker.asked) == 1


@pytest.mark.parametrize("is_known", [True, False], ids=["gone", "not there yet"])
async def test_with_nobody_up_requests_wait_and_are_served_soon_after_a_worker_is_there(is_known: bool) -> None:
    settings = SimulatorSettings(workers=1, base_port=0, block_tokens=32, time_scale=10_000.0)
    body = {**CHAT, "model": "sim", "max_tokens": 20}
    async with await start_fleet(settings) as fleet:
        if not is_known:
            await fleet.kill(0)
        async with routed(*fleet.urls, admission__no_worker_wait_s=20.0, probes__max_ejection_s=3600.0) as router:
            if is_known:
                assert (await post(router, PATH, body)).status == 200
                await fleet.kill(0)
            asking = [asyncio.create_task(post(router, PATH, body)) for _ in range(10)]
            await until(lambda: router.data.live == 10)
            await until(lambda: not router.fleet.catalog.is_ready())
            await fleet.restart(0)
            found = await asyncio.wait_for(asyncio.gather(*asking), 10)
            assert {each.status for each in found} == {200}


async def test_with_nobody_up_the_answer_comes_when_the_time_is_over() -> None:
    async with routed(await unused_url(), admission__no_worker_wait_s=0.1) as router:
        found = await post(router, PATH, CHAT)
        assert (found.status, found.error["code"]) == (503, "no_worker_available")
        assert int(found.headers["retry-after"]) >= 1
        assert (await samples(router))["admission_refusals_total", "no_worker"] == 1


async def test_when_the_retries_are_spent_clients_are_told_not_to_retry_for_it() -> None:
    bad = answering(status=500)
    none = {"retries__min_budget": 0, "retries__budget_ratio": 0.0}
    async with scripted(bad) as one, scripted(bad) as two, routed(one.url, two.url, **none) as router:
        found = await post(router, PATH, CHAT)
        assert (found.status, found.headers["x-should-retry"]) == (502, "false")
        assert len(one.asked) + len(two.asked) == 1
    async with scripted(bad) as one, scripted(bad) as two, routed(one.url, two.url) as router:
        assert "x-should-retry" not in (await post(router, PATH, CHAT)).headers
