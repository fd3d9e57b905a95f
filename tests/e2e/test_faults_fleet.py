"""Workers that are slow, come and go, or are all ejected: who is asked then, and what do clients see?"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.app.serve import Running
from router.core.fleet.health import WorkerState
from router.simulator import Fault, SimulatorSettings, start_fleet
from tests.e2e.faults import CHAT_PATH, all_up, decisions_of, ejections_of, faulted, metric
from tests.e2e.routed import post, until
from tests.upstream.scripted import METRICS, Asked, Peer, ScriptedWorker, answer, scripted, unused_url

OK_BODY = b'{"choices":[{"message":{"content":"ok"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}'

SIM = SimulatorSettings(workers=3, base_port=0, block_tokens=32, time_scale=10_000.0)


def body_of(number: int, tokens: int = 20) -> dict[str, Any]:
    """Prompts that have nothing in common."""
    content = f"{number} " * 100
    return {"model": "sim", "max_tokens": tokens, "messages": [{"role": "user", "content": content}]}


async def ask_at_once(router: Running, numbers: Iterator[int], clients: int) -> Counter[int]:
    """So many clients, each with one request at a time; streams and whole answers in turn."""
    found: Counter[int] = Counter()

    async def client() -> None:
        for number in numbers:
            body = {**body_of(number), "stream": number % 2 == 0}
            found[(await post(router, CHAT_PATH, body)).status] += 1

    await asyncio.gather(*[client() for _ in range(clients)])
    return found


async def test_when_all_are_ejected_whoever_answers_is_asked_all_the_same() -> None:
    settings = {"probes__interval_s": 60.0, "probes__ill_interval_s": 60.0, "probes__ejection_s": 60.0}
    async with (
        await start_fleet(SIM) as fleet,
        faulted(*fleet.urls, probes__max_ejection_s=60.0, **settings) as router,
    ):
        await until(lambda: all_up(router, 3))
        for worker in range(3):
            await fleet.kill(worker)
        while router.fleet.catalog.is_ready():
            assert (await post(router, CHAT_PATH, body_of(0))).status == 503
        await fleet.restart(1)
        assert await ask_at_once(router, iter(range(30)), 6) == {200: 30}


async def test_a_worker_that_is_ten_times_slower_keeps_a_tenth_and_is_never_ejected() -> None:
    simulated = SimulatorSettings(workers=4, base_port=0, block_tokens=32, time_scale=40.0, itl_ms=20.0)
    async with await start_fleet(simulated) as fleet, faulted(*fleet.urls) as router:
        await until(lambda: all_up(router, 4))
        fleet.set_fault(0, Fault.SLOW)
        numbers = iter(range(400))
        assert await ask_at_once(router, numbers, 8) == {200: 400}
        slow = next(member.name for member in router.fleet.members() if member.address.url == fleet.urls[0])
        late = [decision["worker"] for decision in (await decisions_of(router))[:200]]
        assert late.count(slow) / len(late) <= 0.1
        assert await ejections_of(router) == 0


async def test_a_worker_that_comes_and_goes_is_never_seen_and_stays_out_longer_each_time() -> None:
    settings = {"probes__ejection_s": 1.0, "probes__max_ejection_s": 10.0, "probes__ill_interval_s": 0.01}
    async with await start_fleet(SIM) as fleet, faulted(*fleet.urls, **settings) as router:
        member = next(each for each in router.fleet.members() if each.address.url == fleet.urls[0])
        numbers = iter(range(10_000))
        for flap in range(3):
            await until(lambda: all_up(router, 3))
            assert member.health.doublings == flap
            await fleet.kill(0)
            asked = [next(numbers) for _ in range(24)]
            while member.health.state is WorkerState.UP:
                assert await ask_at_once(router, iter(asked), 8) == {200: 24}
            await fleet.restart(0)
            assert await ask_at_once(router, iter(asked[:4]), 4) == {200: 4}
        assert {decision["status"] for decision in await decisions_of(router)} == {200}


NO_MODEL = b'{"error":{"message":"The model `%b` does not exist.","type":"NotFoundError","param":"model","code":404}}'


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}]}


SELDOM: dict[str, Any] = {"probes__interval_s": 60.0, "probes__models_interval_s": 60.0}


@asynccontextmanager
async def by_name(*models: str) -> AsyncIterator[ScriptedWorker]:
    """It answers for the models that it has, whatever it told of them."""
    there: list[ScriptedWorker] = []

    async def script(asked: Asked, peer: Peer) -> None:
        model = json.loads(asked.body)["model"]
        has_it = model in there[0].models
        await peer.send(answer(OK_BODY) if has_it else answer(NO_MODEL % model.encode(), 404))

    async with scripted(script, models=models) as worker:
        there.append(worker)
        yield worker


async def test_an_adapter_is_served_as_soon_as_it_is_loaded_and_wherever_it_still_is() -> None:
    async with by_name("m") as one, by_name("m") as two, faulted(one.url, two.url, **SELDOM) as router:
        await until(lambda: router.fleet.catalog.eligible("m").positions == [0, 1])
        one.models = two.models = ("m", "sql")
        assert (await post(router, CHAT_PATH, chat("sql"))).status == 200
        one.models = ("m",)
        assert [(await post(router, CHAT_PATH, chat("sql"))).status for _ in range(12)] == [200] * 12
        assert sum(json.loads(each.body)["model"] == "sql" for each in one.asked) <= 2


async def test_a_model_whose_worker_is_yet_to_come_up_is_waited_for_and_never_absent() -> None:
    late = await unused_url()
    async with by_name("m") as one, faulted(one.url, late) as router:
        found = await post(router, CHAT_PATH, chat("large"))
        assert (found.status, found.error["code"], found.headers["retry-after"]) == (503, "model_unavailable", "2")
    async with by_name("m") as one, faulted(one.url, fleet__models=["large"]) as router:
        found = await post(router, CHAT_PATH, chat("large"))
        assert (found.status, found.error["code"], found.headers["retry-after"]) == (503, "model_unavailable", "2")
        assert (await post(router, CHAT_PATH, chat("small"))).status == 404


def sleeping(state: str) -> bytes:
    """A worker's metrics, as vLLM writes them."""
    states = ("awake", "weights_offloaded", "discard_all")
    line = b'vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="%b"} %b\n'
    return METRICS + b"".join(line % (each.encode(), b"1.0" if each == state else b"0.0") for each in states)


@pytest.mark.parametrize("state", ["weights_offloaded", "discard_all"])
async def test_a_worker_that_sleeps_takes_no_request_and_returns_when_it_wakes(state: str) -> None:
    async with by_name("m") as one, by_name("m") as two, faulted(one.url, two.url) as router:
        member = next(each for each in router.fleet.members() if each.address.url == one.url)
        one.probed["/metrics"] = sleeping(state)
        await until(lambda: member.state is WorkerState.ASLEEP)
        assert {(await post(router, CHAT_PATH, chat("m"))).status for _ in range(8)} == {200}
        assert not one.asked
        two.probed["/metrics"] = sleeping(state)
        await until(lambda: not router.fleet.catalog.is_ready())
        found = await post(router, CHAT_PATH, chat("m"))
        assert (found.status, found.error["code"]) == (503, "model_unavailable")
        one.probed["/metrics"] = sleeping("awake")
        await until(lambda: member.state is WorkerState.UP)
        assert (await post(router, CHAT_PATH, chat("m"))).status == 200
        assert (len(one.asked), len(two.asked)) == (1, 8)


async def test_a_restart_of_data_parallel_engines_is_noticed_by_their_counters() -> None:
    line = b'vllm:prefix_cache_queries_total{engine="%d"} %d.0\n'
    async with by_name("m") as one, faulted(one.url) as router:
        (member,) = router.fleet.members()
        one.probed["/metrics"] = METRICS + line % (0, 5_000) + line % (1, 9_000)
        await until(lambda: member.load is not None and len(member.load.looked_up_tokens) == 2)
        asked = chat("m") | {"messages": [{"role": "user", "content": "word " * 2000}]}
        assert (await post(router, CHAT_PATH, asked)).status == 200
        assert await metric(router, "warmroute_prefix_index_blocks") > 0
        one.probed["/metrics"] = METRICS + line % (0, 0) + line % (1, 0)
        await until(lambda: member.load is not None and not any(member.load.looked_up_tokens.values()))
        assert await metric(router, "warmroute_prefix_index_blocks") == 0


NERVOUS: dict[str, Any] = {"probes__failures": 1, "probes__ejection_s": 5.0, "probes__max_ejection_s": 60.0}
OFF: dict[str, Any] = {"probes__failures": 100, "probes__ejection_s": 0.001, "probes__max_ejection_s": 0.001}


@pytest.mark.parametrize("ejection", [NERVOUS, OFF], ids=["at its most nervous", "off"])
async def test_however_nervous_ejection_is_killed_workers_cost_no_request(ejection: dict[str, Any]) -> None:
    # The kills follow each other so closely that one request may die of all of them.
    async with await start_fleet(SIM) as fleet, faulted(*fleet.urls, retries__max_deaths=4, **ejection) as router:
        await until(lambda: all_up(router, 3))
        asking = asyncio.create_task(ask_at_once(router, iter(range(300)), 8))
        for kill in range(3):
            await until(lambda: router.fleet.figures.in_flight[kill % 3] or asking.done())  # noqa: B023  # called before the next
            await fleet.kill(kill % 3)
            await fleet.restart(kill % 3)
            await until(lambda: all_up(router, 3) or asking.done())
        assert await asking == {200: 300}
