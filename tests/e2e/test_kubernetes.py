"""A fleet of 500 pods that appear, fail and terminate under load, through an API whose watches break: no request goes to a pod
that terminates, and no client loses an answer."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from router.app.serve import Running
from router.core.fleet.member import Member
from router.core.request.reply import Reply
from router.core.worker import WorkerAddress
from router.simulator import SimulatorSettings
from router.simulator.fleet import _language
from router.simulator.server import WorkerServer
from router.upstream.exchange import Exchange
from tests.e2e.faults import listen, metric
from tests.e2e.routed import routed, until
from tests.upstream.kubernetes_api import KubernetesApi, endpoint, kubernetes_api

pytestmark = pytest.mark.system

PODS, AT_FIRST, A_STEP = 500, 60, 20
CLIENTS = 16


class Pod(WorkerServer):
    """``arrivals``: when requests came."""

    arrivals: list[float]

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            self.arrivals.append(time.monotonic())
        return await super()._answer(request)


class Cluster:
    def __init__(self, api: KubernetesApi, chance: random.Random) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.1.1", 0))
            self.port: int = probe.getsockname()[1]
        self.settings = SimulatorSettings(workers=1, base_port=self.port, time_scale=50.0)
        self.language = _language(self.settings)
        self.api = api
        self.chance = chance
        self.pods: dict[str, Pod] = {}
        """All that there ever were, by address."""
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.terminated_at: dict[str, float] = {}
        self.left_at: dict[str, float] = {}
        """When the router knew of it."""
        self.asked_late: list[str] = []
        """Pods to which it sent a request afterwards."""

    def watch(self, router: Running) -> None:
        self.router = router
        set_members = router.fleet.set_members

        def noting(addresses: Any) -> tuple[list[Member], list[Member]]:
            found: list[WorkerAddress] = list(addresses)
            came, left = set_members(found)
            self.left_at |= {member.address.host: time.monotonic() for member in left}
            return came, left

        router.fleet.set_members = noting  # type: ignore[method-assign]

    def notice_late_requests(self, patch: pytest.MonkeyPatch) -> None:
        ask = Exchange.ask

        def asking(exchange: Exchange, *given: Any, **named: Any) -> Awaitable[Reply]:
            host = exchange._port.address.host
            if host in self.left_at:
                self.asked_late.append(host)
            return ask(exchange, *given, **named)

        patch.setattr(Exchange, "ask", asking)

    def known(self) -> set[str]:
        """To the router."""
        return {member.address.host for member in self.router.fleet.members()}

    async def appear(self, number: int) -> None:
        for _ in range(number):
            host = f"127.0.{1 + len(self.pods) // 250}.{1 + len(self.pods) % 250}"
            pod = self.pods[host] = Pod(self.settings, *self.language, 0)
            pod.arrivals = []
            await pod.start(host)
            self.endpoints[host] = endpoint(host)
        self.tell()

    def tell(self) -> None:
        self.api.put_all(self.endpoints, self.port)

    def some(self, number: int) -> list[str]:
        there = [host for host, told in self.endpoints.items() if "terminating" not in told["conditions"]]
        return self.chance.sample(there, number)

    async def terminate(self, number: int) -> None:
        """They end what they have begun."""
        hosts = self.some(number)
        for host in hosts:
            self.endpoints[host] = endpoint(host, ready=False, terminating=True)
            self.terminated_at[host] = time.monotonic()
        self.tell()
        await until(lambda: not self.known() & set(hosts))
        for host in hosts:
            await self.pods[host].worker.wait_idle()
            await self.pods[host].stop()
            del self.endpoints[host]
        self.tell()

    async def fail(self, number: int) -> None:
        """They die, and it is noticed a little later."""
        hosts = self.some(number)
        for host in hosts:
            await self.pods[host].stop()
        await asyncio.sleep(0)
        for host in hosts:
            del self.endpoints[host]
        self.tell()

    async def aclose(self) -> None:
        for pod in self.pods.values():
            if not pod.worker.is_closed:
                await pod.stop()


@asynccontextmanager
async def fleet_of_pods(folder: Path) -> AsyncIterator[tuple[Cluster, Running]]:
    async with kubernetes_api(history=50) as api:
        cluster = Cluster(api, random.Random(7))
        try:
            await cluster.appear(AT_FIRST)
            settings = {
                "fleet__workers_kubernetes": "models/vllm",
                "fleet__kubeconfig": api.kubeconfig(folder),
                "fleet__discovery_interval_s": 3600.0,
                "probes__interval_s": 5.0,
                "load__poll_interval_s": 5.0,
                "resumption__max_attempts": 5,
                # Eight of forty die at once, again and again: one request may meet three of them, and by default it is then
                # taken for what kills them.
                "retries__max_deaths": 20,
            }
            async with routed(**settings, timeout_s=100.0) as router:
                cluster.watch(router)
                await until(lambda: len(router.fleet.catalog.eligible("sim").positions) == AT_FIRST)
                yield cluster, router
        finally:
            await cluster.aclose()


async def ask(router: Running, number: int, goes_on: Callable[[], bool]) -> int:
    """One client, again and again; how many answers it had, all of them whole."""
    answers = 0
    while goes_on():
        body = {"model": "sim", "max_tokens": 8, "messages": [{"role": "user", "content": f"{number} {answers}"}]}
        told = await listen(router, "/v1/chat/completions", body)
        assert told.is_done
        assert len(told.ends) == 1
        answers += 1
    return answers


async def trouble(cluster: Cluster, is_over: asyncio.Event) -> None:
    """Watches break, and once their past is forgotten, too."""
    for number in range(10**6):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.4):
                await is_over.wait()
                return
        cluster.api.fails = int(number % 3 == 0)
        if number % 4 == 3:
            cluster.api.forget_history()
        await cluster.api.break_watches()


async def live(cluster: Cluster) -> None:
    steps: list[Callable[[int], Awaitable[None]]] = [cluster.terminate, cluster.fail]
    while len(cluster.pods) < PODS:
        await cluster.appear(A_STEP)
        for step in steps:
            await step(8)


async def test_no_request_goes_to_a_pod_that_terminates_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet_of_pods(tmp_path) as (cluster, router):
        cluster.notice_late_requests(monkeypatch)
        is_over = asyncio.Event()
        clients = [asyncio.create_task(ask(router, each, lambda: not is_over.is_set())) for each in range(CLIENTS)]
        breaking = asyncio.create_task(trouble(cluster, is_over))
        await live(cluster)
        is_over.set()
        answers = sum(await asyncio.gather(*clients))
        await breaking
        there = sum("terminating" not in told["conditions"] for told in cluster.endpoints.values())
        await until(lambda: len(router.fleet) == there)

        assert not cluster.asked_late
        assert len(cluster.pods) == PODS
        assert len(cluster.terminated_at) > 150
        assert answers > 200
        assert sum(len(cluster.pods[host].arrivals) for host in cluster.terminated_at) > 0
        assert await metric(router, "warmroute_requests_total", status="200") == answers
        left = cluster.left_at
        delays = sorted(left[host] - at for host, at in cluster.terminated_at.items() if host in left)
        print(
            f"\n{answers} answers; {len(delays)} pods terminated, known after p50 {delays[len(delays) // 2]:.3f} s, "
            f"max {delays[-1]:.3f} s; {cluster.api.watches} watches, {cluster.api.lists} lists"
        )
