"""A soak test of minutes: does every request end, and does the router stay small under faults?

    python -m bench.soak [MINUTES] [--rate 20] [--seed 1]

Four simulated workers run as processes behind ``warmroute serve``. Requests of all kinds come at a steady rate: streams,
whole answers, sessions, clients that leave, clients that stop reading, and bad requests. Every few seconds a worker is
killed and started again, stopped and continued, or gets one of the simulator's faults. Each request must end with an
answer, an error or its client's departure. A stream that is cut must never end like a whole one.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import psutil
import uvloop

from bench.kills import SimulatedWorker, all_up
from bench.verdict import ServedRouter, conclude, served

DEADLINE_S = 60.0
"""The sum of all waits that one request can meet, as configured below, is shorter."""
SETTINGS = {
    "WARMROUTE_TIMEOUTS__MIN_FIRST_EVENT_S": "2",
    "WARMROUTE_TIMEOUTS__FIRST_EVENT_S": "6",
    "WARMROUTE_TIMEOUTS__EVENT_GAP_S": "2",
    "WARMROUTE_TIMEOUTS__ANSWER_S": "8",
    "WARMROUTE_TIMEOUTS__SILENCE_S": "4",
    "WARMROUTE_RESUMPTION__WAIT_S": "5",
    "WARMROUTE_LIMITS__WRITE_STALL_S": "3",
}
SIMULATED = ("--time-scale", "1", "--itl-ms", "20", "--answers", "bytes", "--stream-interval-ms", "0")
SMALL_CACHE = ("--cache-blocks", "100", "--block-tokens", "64")
"""A small cache, so that the equally large index is full soon and does not look like a leak."""
FAULTS = ("error", "drain", "slow", "hang", "cut", "reset", "truncate", "garbage", "dead")
STRIKES = ("hang", "cut", "reset", "truncate", "garbage", "dead")
FAULT_EVERY_S = 3.0
MAX_SLOPE_MB_PER_MIN = 1.0
SETTLE_S = 15.0


class Load:
    """Requests of all kinds, and the end of each of them."""

    def __init__(self, url: str, session: aiohttp.ClientSession, chance: random.Random) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._session = session
        self._chance = chance
        self._turns: dict[int, list[dict[str, str]]] = {}
        self.ends: Counter[str] = Counter()
        kinds: list[tuple[Callable[[], Awaitable[str]], int]] = [
            (self._stream, 8),
            (self._whole, 4),
            (self._session_turn, 3),
            (self._leave, 3),
            (self._stall, 1),
            (self._mistake, 1),
        ]
        self._kinds = [kind for kind, weight in kinds for _ in range(weight)]

    async def run(self, seconds: float, rate: float) -> None:
        """Open loop: the next request does not wait for the last."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as requests:
            while time.monotonic() < until:
                requests.create_task(self._one(self._chance.choice(self._kinds)))
                await asyncio.sleep(self._chance.expovariate(rate))

    async def _one(self, kind: Callable[[], Awaitable[str]]) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                end = await kind()
        except TimeoutError:
            end = "no end"
        except (aiohttp.ClientError, OSError) as error:
            end = type(error).__name__
        self.ends[f"{getattr(kind, '__name__', '?').strip('_')}: {end}"] += 1

    def _body(self, **more: Any) -> dict[str, Any]:
        text = f"Tell me of the {self._chance.randrange(200)}th thing. " * 20
        tokens = self._chance.choice((20, 50, 150))
        return {"model": "sim", "max_tokens": tokens, "messages": [{"role": "user", "content": text}], **more}

    async def _stream(self) -> str:
        body = self._body(stream=True)
        if self._chance.random() < 0.2:
            body["presence_penalty"] = 0.5  # which no other worker can go on with
        async with self._session.post(self._url, json=body) as response:
            return await _read_stream(response) if response.status == 200 else str(response.status)

    async def _whole(self) -> str:
        async with self._session.post(self._url, json=self._body()) as response:
            await response.json()
            return str(response.status)

    async def _session_turn(self) -> str:
        number = self._chance.randrange(50)
        turns = self._turns.setdefault(number, [])
        if len(turns) > 8:
            turns.clear()
        turns.append({"role": "user", "content": "And what then? " * 30})
        headers = {"X-Session-ID": f"soak-{number}"}
        async with self._session.post(self._url, json=self._body(messages=turns), headers=headers) as response:
            answer = await response.json()
            if response.status == 200:
                turns.append(answer["choices"][0]["message"])
            return str(response.status)

    async def _leave(self) -> str:
        """Leaves at a random time."""
        asking = asyncio.ensure_future(self._chance.choice((self._stream, self._whole))())
        done, _ = await asyncio.wait([asking], timeout=self._chance.uniform(0, 2))
        asking.cancel()
        with suppress(asyncio.CancelledError):
            return await asking
        return "left" if not done else "?"

    async def _stall(self) -> str:
        async with self._session.post(self._url, json=self._body(stream=True)) as response:
            await asyncio.sleep(self._chance.uniform(1, 6))
            return "left" if response.status == 200 else str(response.status)

    async def _mistake(self) -> str:
        body = self._chance.choice((b"{half", b'{"model":"other","messages":[]}', b'{"model":"sim","messages":5}', b""))
        async with self._session.post(self._url, data=body) as response:
            await response.read()
            return str(response.status)


async def _read_stream(response: aiohttp.ClientResponse) -> str:
    text, is_broken = b"", False
    try:
        async for piece in response.content.iter_any():
            text = (text + piece)[-2000:]
    except (aiohttp.ClientError, OSError):
        is_broken = True
    if is_broken:
        return "error event" if b'data: {"error"' in text else "cut"
    return "whole" if text.endswith(b"data: [DONE]\n\n") and b'data: {"error"' not in text else "false end"


class Trouble:
    """Causes faults on one worker after another until it is cancelled."""

    def __init__(self, workers: list[SimulatedWorker], session: aiohttp.ClientSession, chance: random.Random) -> None:
        self._workers = workers
        self._session = session
        self._chance = chance
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        kinds = [self._kill] * 3 + [self._stop] * 2 + [self._fault] * 4 + [self._strike] * 3
        while True:
            await asyncio.sleep(self._chance.uniform(0, FAULT_EVERY_S))
            await self._chance.choice(kinds)(self._chance.choice(self._workers))

    async def _kill(self, worker: SimulatedWorker) -> None:
        self.counts["kill"] += 1
        await worker.kill()
        await asyncio.sleep(0.5)
        await worker.start()
        await worker.healthy(self._session)

    async def _stop(self, worker: SimulatedWorker) -> None:
        self.counts["stop"] += 1
        worker.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._chance.uniform(0.5, 5))
        finally:
            worker.send(signal.SIGCONT)

    async def _fault(self, worker: SimulatedWorker) -> None:
        fault = self._chance.choice(FAULTS)
        self.counts[fault] += 1
        await self._set(worker, fault=fault)
        await asyncio.sleep(self._chance.uniform(0.5, 4))
        await self._set(worker, fault="none")

    async def _strike(self, worker: SimulatedWorker) -> None:
        fault = self._chance.choice(STRIKES)
        self.counts[f"one {fault}"] += 1
        await self._set(worker, fault=fault, after_events=self._chance.randrange(200))

    async def _set(self, worker: SimulatedWorker, **fault: Any) -> None:
        """Sets a fault. Tries again if the worker's earlier fault closes the connection."""
        while True:
            with suppress(aiohttp.ClientError, OSError):
                async with self._session.post(f"{worker.url}/simulator/fault", json=fault) as response:
                    response.raise_for_status()
                    return
            await asyncio.sleep(0.05)


async def sample(process: psutil.Process, samples: list[tuple[float, float]]) -> None:
    """Seconds since the start and MB resident, once a second."""
    started = time.monotonic()
    while True:
        samples.append((time.monotonic() - started, process.memory_info().rss / 2**20))
        await asyncio.sleep(1.0)


def slope(samples: list[tuple[float, float]]) -> float:
    """MB a minute, by least squares."""
    mean_s = sum(at for at, _ in samples) / len(samples)
    mean_mb = sum(mb for _, mb in samples) / len(samples)
    spread = sum((at - mean_s) ** 2 for at, _ in samples)
    return 60.0 * sum((at - mean_s) * (mb - mean_mb) for at, mb in samples) / spread if spread else 0.0


async def read_rest(router: ServedRouter, session: aiohttp.ClientSession) -> dict[str, float]:
    """Figures of state that ended requests could leave behind."""
    async with session.get(f"{router.admin_url}/metrics") as response:
        text = await response.text()
    names = ("live_requests", "resumption_kept_bytes", "retries_in_flight", "open_worker_connections")
    found = {name: re.search(rf"^warmroute_{name} (\S+)$", text, re.MULTILINE) for name in names}
    rest = {name: float(match[1]) for name, match in found.items() if match is not None}
    async with session.get(f"{router.admin_url}/workers") as response:
        workers = (await response.json())["workers"]
    rest["leases"] = sum(worker["in_flight"] for worker in workers)
    rest["queued_prefill_tokens"] = sum(abs(worker["queued_prefill_tokens"]) for worker in workers)
    return rest


async def settle(router: ServedRouter, session: aiohttp.ClientSession, workers: int) -> dict[str, float]:
    """Waits until only the probes' connections are left, up to a limit."""
    until = time.monotonic() + SETTLE_S
    while True:
        rest = await read_rest(router, session)
        others = sum(rest.values()) - rest["open_worker_connections"]
        if (not others and rest["open_worker_connections"] <= 2 * workers) or time.monotonic() > until:
            return rest
        await asyncio.sleep(0.25)


async def run(arguments: argparse.Namespace) -> int:
    chance, samples = random.Random(arguments.seed), list[tuple[float, float]]()
    workers = [SimulatedWorker(*SIMULATED, *SMALL_CACHE, "--vocabulary", arguments.vocabulary) for _ in range(4)]
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(None)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
            for worker in workers:
                await worker.start()
            await asyncio.gather(*[worker.healthy(session) for worker in workers])
            async with served([worker.url for worker in workers], SETTINGS) as router:
                await all_up(router, session)
                load, trouble = Load(router.url, session, chance), Trouble(workers, session, chance)
                sampling = asyncio.create_task(sample(psutil.Process(router.process.pid), samples))
                troubling = asyncio.create_task(trouble.run())
                await load.run(arguments.minutes * 60, arguments.rate)
                for task in (troubling, sampling):
                    task.cancel()
                troubled, _ = await asyncio.gather(troubling, sampling, return_exceptions=True)
                rest = await settle(router, session, len(workers))
    finally:
        for worker in workers:
            await worker.kill()
    return verdict(arguments, load, trouble, samples, rest, troubled)


def verdict(
    arguments: argparse.Namespace,
    load: Load,
    trouble: Trouble,
    samples: list[tuple[float, float]],
    rest: dict[str, float],
    troubled: object,
) -> int:
    growth = slope(samples[len(samples) * 2 // 3 :])
    connections = rest.pop("open_worker_connections")
    if not isinstance(troubled, asyncio.CancelledError):
        print(f"no faults any more: {troubled!r}", file=sys.stderr)
    of_streams = {end.split(": ")[1] for end in load.ends if end.startswith("stream")}
    figures = {
        "minutes": arguments.minutes,
        "requests": load.ends.total(),
        "ends": dict(sorted(load.ends.items())),
        "faults": trouble.counts,
        "rss_mb_at_first": round(samples[0][1], 1),
        "rss_mb_each_minute": [round(mb, 1) for _, mb in samples[::60]],
        "rss_mb_max": round(max(mb for _, mb in samples), 1),
        "rss_mb_at_last": round(samples[-1][1], 1),
        "rss_mb_per_minute_in_the_last_third": round(growth, 3),
        "left_behind": rest,
        "open_worker_connections": connections,
    }
    return conclude(
        "soak",
        figures,
        {
            "every request ends": not any(end.endswith(": no end") for end in load.ends),
            "no stream ends as if it were whole": "false end" not in of_streams,
            "a stream that breaks says so": "cut" not in of_streams,
            f"memory grows by {MAX_SLOPE_MB_PER_MIN:g} MB a minute at the most": growth <= MAX_SLOPE_MB_PER_MIN,
            "no lease, request, retry or kept byte is left": not any(rest.values()),
            "no connection to a worker is left but those of probes": connections <= 8,
            "the faults went on to the end": isinstance(troubled, asyncio.CancelledError),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Mixed traffic with faults at random.")
    parser.add_argument("minutes", type=float, nargs="?", default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.NamedTemporaryFile() as shared:
        given.vocabulary = shared.name
        sys.exit(uvloop.run(run(given)))
