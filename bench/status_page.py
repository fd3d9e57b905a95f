"""What the status page costs the requests: 200 workers, 500 requests a second, with the page open in Chromium and without, in
turns of a few seconds within one run.

    python -m bench.status_page [--rate 500]

Each request is sent when it is due, whatever became of those before it; what is measured is the time from then to its first
event. The browser runs on the same machine, so it takes of the router's CPU what it never would elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvloop
from playwright.async_api import Browser, async_playwright

from bench.verdict import conclude, served
from router.simulator import SimulatorSettings, start_fleet

WORKERS, ROUNDS, ROUND_S, SETTLE_S = 200, 6, 6.0, 1.0
MAX_RATIO = 1.1
BODY = {"model": "sim", "max_tokens": 2, "stream": True, "messages": [{"role": "user", "content": "hello " * 60}]}


async def load(http: aiohttp.ClientSession, url: str, rate: float) -> list[float]:
    """Seconds to the first event of each request of one round."""
    found: list[float] = []
    due = time.perf_counter()
    end = due + ROUND_S
    sent: set[asyncio.Task[None]] = set()
    while due < end:
        await asyncio.sleep(max(due - time.perf_counter(), 0.0))
        sent.add(asyncio.create_task(_ask(http, url, due, found)))
        due += 1.0 / rate
    await asyncio.gather(*sent)
    return found


async def _ask(http: aiohttp.ClientSession, url: str, due: float, found: list[float]) -> None:
    async with http.post(f"{url}/v1/chat/completions", json=BODY) as answer:
        await answer.content.readany()
        found.append(time.perf_counter() - due)
        await answer.read()


@asynccontextmanager
async def looking(browser: Browser, url: str) -> AsyncIterator[None]:
    page = await browser.new_page()
    await page.goto(url)
    await page.wait_for_function(f"document.querySelectorAll('#workers tbody tr').length == {WORKERS}")
    try:
        yield
    finally:
        await page.close()


async def measure(rate: float) -> tuple[dict[str, float], dict[str, bool]]:
    fleet_settings = SimulatorSettings(workers=WORKERS, base_port=0, time_scale=50.0)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        await start_fleet(fleet_settings) as fleet,
        served(fleet.urls, {}) as router,
        aiohttp.ClientSession(connector=connector) as http,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        await load(http, router.url, rate)  # what is learnt, is learnt before
        times: dict[bool, list[list[float]]] = {False: [], True: []}
        for _ in range(ROUNDS):
            times[False].append(await load(http, router.url, rate))
            async with looking(browser, router.admin_url):
                await asyncio.sleep(SETTLE_S)
                times[True].append(await load(http, router.url, rate))
        await browser.close()
    p99 = {is_open: [sorted(each)[int(0.99 * len(each))] for each in rounds] for is_open, rounds in times.items()}
    p50 = {is_open: [statistics.median(each) for each in rounds] for is_open, rounds in times.items()}
    ratio = statistics.median(with_ / without for with_, without in zip(p99[True], p99[False], strict=True))
    figures = {
        "requests": float(sum(len(each) for rounds in times.values() for each in rounds)),
        "p50_ms_without": statistics.median(p50[False]) * 1e3,
        "p50_ms_with": statistics.median(p50[True]) * 1e3,
        "p99_ms_without": statistics.median(p99[False]) * 1e3,
        "p99_ms_with": statistics.median(p99[True]) * 1e3,
        "p99_ratio": ratio,
    }
    return figures, {f"p99 with the page at most {MAX_RATIO} of that without": ratio <= MAX_RATIO}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    figures, claims = uvloop.run(measure(parser.parse_args().rate))
    return conclude("status_page", figures, claims)


if __name__ == "__main__":
    sys.exit(main())
