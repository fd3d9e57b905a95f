"""The effect on clients while workers are killed, fail and come back.

    python -m bench.kills

1. Four simulated workers run as processes. Every 2.5 s one is killed with SIGKILL and started again 0.5 s later, while
   10,000 unstreamed requests run through ``warmroute serve``, 32 at a time. No request may fail.
2. One worker answers 500 at once. What share of the attempts does it get?
3. All workers are killed: 503 with Retry-After. One comes back: how long from its first healthy probe to the first answer?
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import aiohttp
import uvloop

from bench.verdict import ServedRouter, conclude, percentile, served

REQUESTS = 10_000
CONCURRENCY = 32
KILL_EVERY_S = 2.5
BACK_AFTER_S = 0.5
FAILING_REQUESTS = 2_000
MAX_FAILING_SHARE = 0.03
RETURNS = 5
AT_ONCE = {"WARMROUTE_ADMISSION__NO_WORKER_WAIT_S": "0"}
"""Without a healthy worker a request gets its error at once and does not wait."""
MAX_RETURN_S = 1.0


class SimulatedWorker:
    """One worker process on a port of its own. It can be killed and started again."""

    def __init__(self, *options: str) -> None:
        """``options``: more options of ``warmroute simulate``."""
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Process | None = None

    async def start(self) -> None:
        arguments = ("-m", "router", "simulate", "--workers", "1", "--base-port", str(self.port), *self._options)
        self._process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=DEVNULL, stderr=DEVNULL)

    async def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    async def healthy(self, session: aiohttp.ClientSession) -> float:
        """Waits until the worker is healthy. Returns the monotonic time."""
        while True:
            with suppress(aiohttp.ClientError, OSError):
                async with session.get(f"{self.url}/health") as response:
                    if response.status == 200:
                        return time.monotonic()
            await asyncio.sleep(0.005)


class Load:
    """Requests of a hundred conversations, and their results."""

    def __init__(self, router: ServedRouter, session: aiohttp.ClientSession) -> None:
        self._url = f"{router.url}/v1/chat/completions"
        self._session = session
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []

    async def run(self, requests: int) -> None:
        numbers = iter(range(requests))
        await asyncio.gather(*[self._worker(numbers) for _ in range(CONCURRENCY)])

    async def _worker(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            started = time.monotonic()
            self.statuses[await self.ask(number)] += 1
            self.seconds.append(time.monotonic() - started)

    async def ask(self, number: int) -> str:
        text = f"conversation {number % 100} " * 100
        body = {"model": "sim", "max_tokens": 100, "messages": [{"role": "user", "content": text}]}
        try:
            async with self._session.post(self._url, json=body) as response:
                answer = await response.json()
                if response.status == 503 and "Retry-After" not in response.headers:
                    return "503 without Retry-After"
                is_whole = response.status != 200 or answer["choices"][0]["finish_reason"]
                return str(response.status) if is_whole else "not whole"
        except (aiohttp.ClientError, OSError) as error:
            return type(error).__name__


async def kill_in_turn(workers: list[SimulatedWorker], every_s: float, kills: Counter[int]) -> None:
    """Kills a random worker at each interval until cancelled. ``kills``: how often each was killed."""
    chance = random.Random(1)
    while True:
        await asyncio.sleep(every_s - BACK_AFTER_S)
        number = chance.randrange(len(workers))
        await workers[number].kill()
        kills[number] += 1
        await asyncio.sleep(BACK_AFTER_S)
        await workers[number].start()


async def retries(router: ServedRouter, session: aiohttp.ClientSession) -> Counter[str]:
    async with session.get(f"{router.admin_url}/metrics") as response:
        text = await response.text()
    found = re.findall(r'^warmroute_retries_total\{cause="(\w+)"\} ([\d.e+]+)$', text, re.MULTILINE)
    return Counter({cause: int(float(value)) for cause, value in found})


async def all_up(router: ServedRouter, session: aiohttp.ClientSession) -> None:
    while True:
        async with session.get(f"{router.admin_url}/workers") as response:
            if {worker["state"] for worker in (await response.json())["workers"]} == {"up"}:
                return
        await asyncio.sleep(0.05)


async def survive_kills(
    router: ServedRouter, session: aiohttp.ClientSession, workers: list[SimulatedWorker]
) -> dict[str, Any]:
    kills: Counter[int] = Counter()
    killing = asyncio.create_task(kill_in_turn(workers, KILL_EVERY_S, kills))
    load, started = Load(router, session), time.monotonic()
    await load.run(REQUESTS)
    elapsed = time.monotonic() - started
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    for worker in workers:
        await worker.kill()
        await worker.start()
    return {
        "requests": REQUESTS,
        "elapsed_s": round(elapsed, 1),
        "kills": sum(kills.values()),
        "statuses": load.statuses,
        "retries": await retries(router, session),
        "p50_s": round(percentile(load.seconds, 0.5), 3),
        "p99_s": round(percentile(load.seconds, 0.99), 3),
        "max_s": round(max(load.seconds), 3),
    }


async def avoid_a_failing_worker(
    router: ServedRouter, session: aiohttp.ClientSession, workers: list[SimulatedWorker]
) -> dict[str, Any]:
    await asyncio.gather(*[worker.healthy(session) for worker in workers])
    await all_up(router, session)
    before = (await retries(router, session))["error"]
    async with session.post(f"{workers[0].url}/simulator/fault", json={"fault": "error"}):
        pass
    load, started = Load(router, session), time.monotonic()
    await load.run(FAILING_REQUESTS)
    elapsed = time.monotonic() - started
    attracted = (await retries(router, session))["error"] - before
    async with session.post(f"{workers[0].url}/simulator/fault", json={"fault": "none"}):
        pass
    return {
        "requests": FAILING_REQUESTS,
        "elapsed_s": round(elapsed, 1),
        "statuses": load.statuses,
        "attempts_on_the_failing_worker": attracted,
        "share": round(attracted / FAILING_REQUESTS, 4),
    }


async def come_back(
    router: ServedRouter, session: aiohttp.ClientSession, workers: list[SimulatedWorker]
) -> dict[str, Any]:
    load = Load(router, session)
    returns: list[float] = []
    for worker in itertools.islice(itertools.cycle(workers), RETURNS):
        for each in workers:
            await each.kill()
        await load.run(100)
        healthy = asyncio.create_task(worker.healthy(session))
        await worker.start()
        while (status := await load.ask(0)) != "200":
            load.statuses[status] += 1
            await asyncio.sleep(0.01)
        served_at = time.monotonic()
        returns.append(served_at - await healthy)
    return {"statuses_with_all_killed": load.statuses, "seconds_to_first_answer": [round(each, 3) for each in returns]}


async def run() -> int:
    workers = [SimulatedWorker() for _ in range(4)]
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
            for worker in workers:
                await worker.start()
            await asyncio.gather(*[worker.healthy(session) for worker in workers])
            async with served([worker.url for worker in workers], AT_ONCE) as router:
                await all_up(router, session)
                killed = await survive_kills(router, session, workers)
                failing = await avoid_a_failing_worker(router, session, workers)
                gone = await come_back(router, session, workers)
    finally:
        for worker in workers:
            await worker.kill()
    statuses = gone["statuses_with_all_killed"]
    return conclude(
        "kills",
        {"killed": killed, "failing": failing, "gone": gone},
        {
            f"none of {REQUESTS} requests fails through {killed['kills']} kills": dict(killed["statuses"])
            == {"200": REQUESTS},
            f"a worker that answers 500 attracts under {MAX_FAILING_SHARE:.0%} and no request fails": (
                failing["share"] < MAX_FAILING_SHARE and dict(failing["statuses"]) == {"200": FAILING_REQUESTS}
            ),
            "with all workers killed every answer is 503 with Retry-After": set(statuses) == {"503"},
            f"the first answer comes within {MAX_RETURN_S:g} s of the first worker's return": (
                max(gone["seconds_to_first_answer"]) <= MAX_RETURN_S
            ),
        },
    )


if __name__ == "__main__":
    sys.exit(uvloop.run(run()))
