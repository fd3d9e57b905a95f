"""The cost of the status page for requests: 200 workers, 500 requests a second, rounds with and without a viewer.

    python -m bench.status_page [--rate 500] [--browser]

Each request is sent when it is due, without waiting for earlier ones. The figures are the time from then to its first event
and the router's CPU time by the kernel's accounting. The viewer reads the page's events. With ``--browser`` Chromium draws
them in all rounds, since its own CPU time is not the router's cost: either from the router, or from a copy of the page that
repeats recorded events. Chromium runs at the lowest priority. Rounds last a few seconds, and their medians are compared, so
that a pause of the machine does not count. A bootstrap over the rounds gives the ratio's interval.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import uvloop
from aiohttp import web
from playwright.async_api import Browser, async_playwright

from bench.cpu.accounting import read_cpu
from bench.verdict import conclude, served
from router.server.status.feed import EVERY_S
from router.simulator import SimulatorSettings, start_fleet

WORKERS, ROUNDS, ROUND_S, SETTLE_S = 200, 20, 5.0, 1.0
MAX_RATIO = 1.1
RECORDED = 5
DRAWS = 2000
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
async def reading(http: aiohttp.ClientSession, url: str) -> AsyncIterator[None]:
    """Reads the events as the page does, without drawing them."""

    async def read() -> None:
        async with http.get(f"{url}/events") as answer:
            async for _ in answer.content.iter_any():
                pass

    task = asyncio.create_task(read())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def record(http: aiohttp.ClientSession, url: str) -> list[bytes]:
    async with http.get(f"{url}/events") as answer:
        return [await answer.content.readuntil(b"\n\n") for _ in range(RECORDED)]


@asynccontextmanager
async def copy_of(http: aiohttp.ClientSession, url: str, events: list[bytes]) -> AsyncIterator[str]:
    """The URL of a page that draws as much and costs the router nothing."""
    files: dict[str, tuple[bytes, str]] = {}
    for path in ("/", "/style.css", "/script.js"):
        async with http.get(url + path) as answer:
            files[path] = await answer.read(), answer.content_type

    async def tell(request: web.BaseRequest) -> web.StreamResponse:
        if request.path in files:
            body, kind = files[request.path]
            return web.Response(body=body, content_type=kind)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        with suppress(ConnectionError):  # the page was closed
            for event in cycle(events):
                await stream.write(event)
                await asyncio.sleep(EVERY_S)
        return stream

    runner = web.ServerRunner(web.Server(tell))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
    await site.start()
    host, port = runner.addresses[0]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def looking(browser: Browser, url: str) -> AsyncIterator[None]:
    page = await browser.new_page()
    await page.goto(url)
    await page.locator("#workers tbody tr").nth(WORKERS - 1).wait_for()
    try:
        yield
    finally:
        await page.close()


def idle_chromium(folder: str) -> str:
    """A command that runs Chromium at the lowest priority."""
    path = Path(folder) / "chromium"
    path.write_text(f'#!/bin/sh\nexec chrt --idle 0 {shutil.which("chromium")} "$@"\n', "utf-8")
    path.chmod(0o755)
    return str(path)


async def measure(rate: float, folder: str, *, draws: bool) -> tuple[dict[str, Any], dict[str, bool]]:
    fleet_settings = SimulatorSettings(workers=WORKERS, base_port=0, time_scale=50.0)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        await start_fleet(fleet_settings) as fleet,
        served(fleet.urls, {}) as router,
        aiohttp.ClientSession(connector=connector) as http,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(executable_path=idle_chromium(folder), args=["--no-sandbox"])
        recorded, _ = await asyncio.gather(record(http, router.admin_url), load(http, router.url, rate))
        cpu_s = {False: 0.0, True: 0.0}
        gc.disable()  # with 200 workers a collection took up to 60 ms, a hundredth of a round, which sets its p99
        times: dict[bool, list[list[float]]] = {False: [], True: []}
        for is_open in (False, True, True, False) * (ROUNDS // 2):  # neither always follows the other
            gc.collect()
            async with AsyncExitStack() as viewer:
                if draws:
                    copy = await viewer.enter_async_context(copy_of(http, router.admin_url, recorded))
                    await viewer.enter_async_context(looking(browser, router.admin_url if is_open else copy))
                elif is_open:
                    await viewer.enter_async_context(reading(http, router.admin_url))
                await asyncio.sleep(SETTLE_S)
                begun = read_cpu(router.process.pid)
                times[is_open].append(await load(http, router.url, rate))
                cpu_s[is_open] += read_cpu(router.process.pid).seconds_since(begun)
        await browser.close()
    return summary(times, cpu_s)


def summary(times: dict[bool, list[list[float]]], cpu_s: dict[bool, float]) -> tuple[dict[str, Any], dict[str, bool]]:
    """The figures of rounds without and with a viewer."""
    pooled = {is_open: sorted(seconds for each in rounds for seconds in each) for is_open, rounds in times.items()}
    figures: dict[str, Any] = {"requests": sum(map(len, pooled.values()))}
    for is_open, name in ((False, "without"), (True, "with")):
        figures[f"p50_ms_{name}"] = _at(pooled[is_open], 0.5)
        figures[f"p99_ms_{name}"] = _at(pooled[is_open], 0.99)
        figures[f"p99_ms_{name}_by_round"] = [_at(sorted(each), 0.99) for each in times[is_open]]
        figures[f"router_cpu_ms_per_request_{name}"] = round(cpu_s[is_open] * 1e3 / len(pooled[is_open]), 4)
    without, shown = ([_at(sorted(each), 0.99) for each in times[is_open]] for is_open in (False, True))
    ratio = statistics.median(shown) / statistics.median(without)
    figures |= {"p99_ratio": round(ratio, 3), "p99_ratio_90_percent": drawn_anew(without, shown)}
    return figures, {f"p99 at most {MAX_RATIO} of that without": ratio <= MAX_RATIO}


def drawn_anew(without: list[float], shown: list[float]) -> tuple[float, float]:
    """The interval of nine tenths of the ratios, with rounds drawn with replacement."""
    draw = random.Random(1)
    ratios = sorted(
        statistics.median(draw.choices(shown, k=len(shown))) / statistics.median(draw.choices(without, k=len(without)))
        for _ in range(DRAWS)
    )
    return round(ratios[DRAWS // 20], 3), round(ratios[-DRAWS // 20], 3)


def _at(ordered: list[float], share: float) -> float:
    """A percentile, in milliseconds."""
    return round(ordered[int(share * len(ordered))] * 1e3, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--browser", action="store_true", help="Chromium draws the page, on the same machine")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        figures, claims = uvloop.run(measure(arguments.rate, folder, draws=arguments.browser))
    return conclude("status_page_browser" if arguments.browser else "status_page", figures, claims)


if __name__ == "__main__":
    sys.exit(main())
