"""Every query of every dashboard, asked of a real Prometheus that scraped a real router at work: each returns data, so none
asks for a metric or a label that was renamed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from grafana.alerts import ALERTS
from grafana.ask import filled_in
from grafana.generate import BOARDS
from grafana.shares import RECORDED
from router.app.serve import Running
from router.simulator import Fault, SimulatedFleet, SimulatorSettings, start_fleet
from tests.e2e.routed import Broken, post, routed, until
from tests.grafana.prometheus import SCRAPED_EVERY_S, Prometheus, scraping
from tests.server.keys import ACME, BETA, bearer, entry, keyed
from tests.sessions.stores.redis_servers import running

pytestmark = pytest.mark.system

WORDS = "the fleet keeps what it has seen and routes what it has not "
KEYS = (
    "[tenants.acme]\nprompt_tokens_per_day = 100_000_000\nsummary_tokens_per_day = 1_000_000\n"
    "[tenants.beta]\nprompt_tokens_per_day = 1\n" + entry("a", "acme", ACME) + entry("b", "beta", BETA)
)
RATED_OVER, SHOWN = "5s", "1m"
CHAT = "/v1/chat/completions"


class Run(NamedTuple):
    prometheus: Prometheus
    began_at: float
    ended_at: float


def chat(*texts: str, **members: Any) -> dict[str, Any]:
    return {
        "model": "sim",
        "messages": [{"role": "user", "content": text} for text in texts],
        "max_tokens": 8,
        **members,
    }


class Traffic:
    """What a router meets in a bad week, within seconds."""

    def __init__(self, router: Running, fleet: SimulatedFleet) -> None:
        self.router = router
        self.fleet = fleet

    async def ask(self, body: dict[str, Any], path: str = CHAT, key: str = ACME, *lines: str) -> int:
        return (await post(self.router, path, body, bearer(key), *lines)).status

    async def common_prompts(self) -> None:
        for number in range(6):
            assert await self.ask(chat(WORDS * 40 + str(number), stream=True)) == 200

    async def tenants(self) -> None:
        """One has spent its day; and somebody has no key."""
        await self.ask(chat(WORDS * 40), CHAT, BETA)
        assert await self.ask(chat("more"), CHAT, BETA) == 429
        assert (await post(self.router, CHAT, chat("hi"))).status == 401

    async def burst(self) -> None:
        """More than the workers have room for."""
        await asyncio.gather(*(self.ask(chat(f"{number} {WORDS * 60}", stream=True)) for number in range(24)))

    async def sessions(self) -> None:
        """Long ones, cut and searched; a system message that changes; two turns at once."""
        path = "/v1/sessions/long/chat/completions"
        for strategy in ("hybrid", "recall"):
            for number in range(14):
                body = chat(f"question {number}: {WORDS * 8}")
                assert await self.ask(body, path, ACME, f"x-warmroute-context-strategy: {strategy}") == 200
        begun = {"role": "system", "content": "be brief"}
        for system in (begun, {**begun, "content": "be long"}):
            body = chat(WORDS)
            await self.ask({**body, "messages": [system, *body["messages"]]}, "/v1/sessions/changed/chat/completions")
        await asyncio.gather(*(self.ask(chat(f"at once {number}"), path) for number in range(4)))

    async def faults(self) -> None:
        """A worker that errs, a stream that breaks and goes on, and then all of them fail."""
        for worker in range(2):
            self.fleet.set_fault(worker, Fault.ERROR)
        await asyncio.gather(*(self.ask(chat(f"{number}")) for number in range(12)))
        for worker in range(4):
            self.fleet.set_fault(worker, Fault.NONE)
        await until(lambda: len(self.router.fleet.catalog.eligible("sim").positions) == 4)
        for worker in range(4):
            self.fleet.set_fault(worker, Fault.CUT, after_events=3)
        for number in range(4):
            try:
                await self.ask(chat(f"break {number}", stream=True, max_tokens=40))
            except Broken:
                continue
        for worker in range(4):
            self.fleet.set_fault(worker, Fault.ERROR)
        assert await self.ask(chat("nobody")) >= 500
        for worker in range(4):
            self.fleet.set_fault(worker, Fault.NONE)
        await until(lambda: len(self.router.fleet.catalog.eligible("sim").positions) == 4)


@asynccontextmanager
async def at_work(directory: Path) -> AsyncIterator[Traffic]:
    settings = SimulatorSettings(workers=4, base_port=0, time_scale=20.0)
    with running() as store:
        more = {
            **keyed(directory / "keys", KEYS),
            "sessions__store": f"{store.url}/0",
            "sessions__secret": "a secret of the tests, and a long one",
            "sessions__state_dir": str(directory),
            "admission__max_worker_requests": 2,
            "context__high_tokens": 900,
            "context__low_tokens": 300,
        }
        async with await start_fleet(settings) as fleet, routed(*fleet.urls, **more) as router:
            await until(lambda: len(router.fleet.catalog.eligible("sim").positions) == 4)
            yield Traffic(router, fleet)


async def scrape(directory: Path) -> tuple[AbstractContextManager[Prometheus], Run]:
    """Prometheus goes on, with what it has, when the router has ended."""
    async with at_work(directory) as traffic:
        context = scraping(traffic.router.admin_url.removeprefix("http://"), directory)
        prometheus = await asyncio.to_thread(context.__enter__)
        began_at = time.time()
        for part in (traffic.common_prompts, traffic.tenants, traffic.burst, traffic.sessions, traffic.faults):
            await part()
            await asyncio.sleep(2 * SCRAPED_EVERY_S)
        return context, Run(prometheus, began_at, time.time())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    context, found = asyncio.run(scrape(tmp_path_factory.mktemp("prometheus")))
    try:
        yield found
    finally:
        context.__exit__(None, None, None)


QUERIES = [
    pytest.param(query.expr, id=f"{board.name}-{panel.title}-{at}")
    for board in BOARDS
    for panel in board.panels
    for at, query in enumerate(panel.queries)
]


@pytest.mark.parametrize("expr", QUERIES)
def test_a_panels_query_returns_data(run: Run, expr: str) -> None:
    assert run.prometheus.values(filled_in(expr, RATED_OVER, SHOWN), run.began_at, run.ended_at)


SELECTORS = sorted({found for alert in ALERTS for found in re.findall(r"warmroute_\w+(?:\{[^}]*\})?", alert.expr)})


@pytest.mark.parametrize("selector", SELECTORS)
def test_what_an_alert_goes_by_is_there(run: Run, selector: str) -> None:
    assert run.prometheus.values(selector, run.began_at, run.ended_at)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_share_returns_data(run: Run, name: str) -> None:
    assert run.prometheus.values(RECORDED[name], run.began_at, run.ended_at)
    for part in re.findall(r"warmroute_\w+\{[^}]*\}", RECORDED[name]):
        assert run.prometheus.values(part, run.began_at, run.ended_at), part
