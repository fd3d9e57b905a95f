"""Clients that begin requests and never end them: how soon they are closed, and what other clients notice.

    python -m bench.slowloris

3,000 connections at once send a few bytes a second, half of them in a head and half in a body, to a router with four
simulated workers. Eight clients send normal requests before and meanwhile. All clients share this process, so the normal
clients' times include the attack's cost for the process. Figures come in pairs: without and during the attack.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import uvloop

from bench.verdict import conclude, percentile, served

ATTACKERS = 3_000
AT_ONCE = 100
NORMAL_CLIENTS = 8
WINDOW_S = 15.0
MAX_OPEN_S = 10.0
SWEEP_S = 1.0
MAX_RATIO = 1.1
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\n"
CHAT = {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}


class Slow(asyncio.Protocol):
    """Sends a few more bytes each second. ``open_s``: seconds until it was closed."""

    def __init__(self, *, with_body: bool) -> None:
        self.with_body = with_body
        self.status = 0
        self.open_s = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._began_at = time.monotonic()
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(HEAD + (b"Content-Length: 1000\r\n\r\n{" if self.with_body else b""))
        self._go_on()

    def _go_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b" " if self.with_body else b"X-A: b\r\n")
            asyncio.get_running_loop().call_later(1.0, self._go_on)

    def data_received(self, data: bytes) -> None:
        self.status = self.status or int(data[9:12])

    def connection_lost(self, _: Exception | None) -> None:
        self.open_s = time.monotonic() - self._began_at
        self.closed.set_result(None)


async def attack(url: str) -> list[Slow]:
    parts, loop = urlsplit(url), asyncio.get_running_loop()

    async def begin(number: int) -> Slow:
        _, slow = await loop.create_connection(
            lambda: Slow(with_body=number % 2 == 1),
            str(parts.hostname),
            parts.port or 0,
            local_addr=(f"127.0.0.{2 + number % 8}", 0),
        )
        return slow

    slow: list[Slow] = []
    for first in range(0, ATTACKERS, AT_ONCE):
        slow += await asyncio.gather(*(begin(number) for number in range(first, first + AT_ONCE)))
    return slow


async def ask_on(session: aiohttp.ClientSession, url: str, until: float, times: list[float]) -> None:
    while time.monotonic() < until:
        started = time.monotonic()
        async with session.post(f"{url}/v1/chat/completions", json=CHAT) as answer:
            await answer.read()
            answer.raise_for_status()
        times.append(time.monotonic() - started)


async def normal_traffic(url: str) -> list[float]:
    """Seconds of each request in a window."""
    times: list[float] = []
    until = time.monotonic() + WINDOW_S
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(ask_on(session, url, until, times) for _ in range(NORMAL_CLIENTS)))
    return times


async def run() -> int:
    _, granted = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, granted))
    async with served([], {"WARMROUTE_FLEET__SIMULATE": "4"}) as router:
        await normal_traffic(router.url)  # connections and code are warm from here on
        without = await normal_traffic(router.url)
        traffic = asyncio.create_task(normal_traffic(router.url))
        slow = await attack(router.url)
        await asyncio.wait([each.closed for each in slow], timeout=60)
        during = await traffic
        closed = [each for each in slow if each.closed.done()]
        async with aiohttp.ClientSession() as session, session.get(f"{router.admin_url}/metrics") as answer:
            counted = [line for line in (await answer.text()).splitlines() if "cut_connections_total{" in line]
    heads = [each.open_s for each in closed if not each.with_body]
    bodies = [each.open_s for each in closed if each.with_body]
    medians = [percentile(each, 0.5) for each in (without, during)]
    figures: dict[str, Any] = {
        "attackers": ATTACKERS,
        "closed": len(closed),
        "heads_open_s_max": round(max(heads), 2),
        "bodies_open_s_max": round(max(bodies), 2),
        "bodies_told_408": sum(each.status == 408 for each in slow),
        "counted": counted,
        "normal_requests": [len(without), len(during)],
        "normal_ms_p50": [round(each * 1e3, 1) for each in medians],
        "normal_ms_p99": [round(percentile(each, 0.99) * 1e3, 1) for each in (without, during)],
    }
    return conclude(
        "slowloris",
        figures,
        {
            "every one is closed": len(closed) == ATTACKERS,
            f"none is open for more than {MAX_OPEN_S:g} s and a sweep": max(heads + bodies)
            <= MAX_OPEN_S + SWEEP_S + 0.5,
            f"others' median is at most {MAX_RATIO:g} of what it was": medians[1] <= MAX_RATIO * medians[0],
        },
    )


if __name__ == "__main__":
    sys.exit(uvloop.run(run()))
