"""One tenant sends far more than its share. What do the other tenants notice?

    python -m bench.fairness [--limits default,16/1000,32/1000,32,0] [--seconds 40] [--workers 16]

The scenario has twenty tenants of equal share. First tenant B alone sends a twentieth of the fleet's capacity, which
gives its TTFT without load. Then A sends 50 times as much beside it, two and a half times the fleet's capacity. With the
defaults, a tenant's bound on requests in progress turns most of A's requests into 429. The other runs have no such bound,
and one pair of limits each: ``admission.max_worker_requests`` and, after a slash, ``max_worker_prefill_tokens``. 0 is no
limit, and 0 alone is no admission at all. All prompts are new and of one length; answers have up to twice the mean.
Router, workers and A's clients are separate processes. Times are the workers', whose clock runs at half the speed, so
that the machine keeps up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import aiohttp
import uvloop

from bench.verdict import ServedRouter, conclude, percentile, served
from router.simulator import SimulatorSettings, start_fleet

PROMPT_TOKENS = 1500
COMPLETION_TOKENS = 100
PREFILL_RATE, ITL_MS, SEATS = 15_000.0, 30.0, 64
TENANTS = 20
TIMES = 50
WARM_UP_S = 10.0
TIME_SCALE = 0.5
PATIENCE_S = 60.0
"""A client gives up after this time."""
MAX_RATIO = 1.5
WORD = " the"
"""About one token of the simulated tokenizer."""


def fleet_rate(workers: int) -> float:
    """Requests per wall second of a fleet with all seats taken: r · (prefill + completion · itl / seats) = 1.

    Each prefill takes part of a step, and each step gives a token to every decoding request.
    """
    return TIME_SCALE * workers / (PROMPT_TOKENS / PREFILL_RATE + COMPLETION_TOKENS * ITL_MS / 1000 / SEATS)


def key_of(tenant: str) -> str:
    return f"wr-key-of-{tenant}"


def keys_file_text(*, with_defaults: bool) -> str:
    """Two tenants of equal share, without limits or with the default ones."""
    limits = "" if with_defaults else "max_in_flight = 0\n"
    entries = (
        f'[tenants.{name}]\n{limits}[[keys]]\nid = "{name}"\ntenant = "{name}"\n'
        f'sha256 = "{sha256(key_of(name).encode()).hexdigest()}"\n'
        for name in ("a", "b")
    )
    return "\n".join(entries)


def serve_command(workers: Sequence[str]) -> tuple[str, ...]:
    """The command of a router that asks for keys."""
    named = [part for worker in workers for part in ("--worker", worker)]
    return sys.executable, "-m", "router", "serve", "--port", "0", "--admin-port", "0", *named


class Limits(NamedTuple):
    """Limits of a worker; 0: none."""

    requests: int
    prefill_tokens: int

    def __str__(self) -> str:
        return "default" if self == DEFAULT else f"{self.requests}/{self.prefill_tokens}"

    @property
    def environment(self) -> dict[str, str]:
        if self == DEFAULT:
            return {}
        return {
            "WARMROUTE_LIMITS__MAX_KEY_CONNECTIONS": "0",
            "WARMROUTE_ADMISSION__MAX_WORKER_REQUESTS": str(self.requests),
            "WARMROUTE_ADMISSION__MAX_WORKER_PREFILL_TOKENS": str(self.prefill_tokens),
        }

    @classmethod
    def parse(cls, text: str) -> Limits:
        if text == "default":
            return DEFAULT
        requests, _, tokens = text.partition("/")
        return cls(int(requests), int(tokens or 0))


DEFAULT = Limits(-1, -1)


@dataclass(slots=True)
class Outcome:
    statuses: Counter[str] = field(default_factory=Counter)
    first_token_s: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {"statuses": dict(self.statuses)}
        if self.first_token_s:
            for name, share in (("p50_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99)):
                found[name] = round(TIME_SCALE * percentile(self.first_token_s, share), 3)
        return found


class Clients:
    """One tenant's clients. They arrive at random times and never wait for earlier ones."""

    def __init__(self, url: str, tenant: str, seed: int) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {key_of(tenant)}"}
        self._chance = random.Random(seed)
        self.outcome = Outcome()

    async def run(self, session: aiohttp.ClientSession, rate: float, seconds: float) -> None:
        """Sends ``rate`` requests a second. Requests of the warm-up do not count."""
        began = due = time.monotonic()
        asking: set[asyncio.Task[None]] = set()
        while (due := due + self._chance.expovariate(rate)) < began + WARM_UP_S + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._ask(session, counts=due > began + WARM_UP_S))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)

    async def _ask(self, session: aiohttp.ClientSession, *, counts: bool) -> None:
        text = f"{self._chance.getrandbits(64):x} " + WORD * PROMPT_TOKENS
        tokens = self._chance.randint(
            1, 2 * COMPLETION_TOKENS - 1
        )  # equal ones would end, and free their seats, together
        body = {"model": "sim", "max_tokens": tokens, "stream": True}
        started = time.monotonic()
        status, first_s = "lost", 0.0
        with suppress(aiohttp.ClientError, OSError):
            async with session.post(
                self._url, json={**body, "messages": [{"role": "user", "content": text}]}, headers=self._headers
            ) as response:
                status = str(response.status)
                async for _ in response.content.iter_any():
                    first_s = first_s or time.monotonic() - started
        if counts:
            self.outcome.statuses[status] += 1
            if status == "200":
                self.outcome.first_token_s.append(first_s)


@asynccontextmanager
async def connected() -> AsyncIterator[aiohttp.ClientSession]:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(PATIENCE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def flood(url: str, rate: float, seconds: float) -> None:
    """The process of A's clients."""
    clients = Clients(url, "a", seed=1)
    async with connected() as session:
        await clients.run(session, rate, seconds)
    print(json.dumps(clients.outcome.summary()))


async def simulate(workers: int) -> None:
    """The process of the workers."""
    settings = SimulatorSettings(
        workers=workers,
        base_port=0,
        time_scale=TIME_SCALE,
        prefill_rate=PREFILL_RATE,
        itl_ms=ITL_MS,
        max_num_seqs=SEATS,
    )
    async with await start_fleet(settings) as fleet:
        print(json.dumps(fleet.urls), flush=True)
        await asyncio.Event().wait()


async def start(*arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.fairness", *arguments), stdout=PIPE, stdin=DEVNULL
    )


@asynccontextmanager
async def simulated(workers: int) -> AsyncIterator[list[str]]:
    process = await start("--role", "workers", "--workers", str(workers))
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def flooded(router: ServedRouter, rate: float, seconds: float) -> AsyncIterator[list[dict[str, Any]]]:
    """A sends its requests inside the block. The list has their results afterwards."""
    found: list[dict[str, Any]] = []
    process = await start("--role", "flood", "--urls", router.url, "--rate", str(rate), "--seconds", str(seconds))
    try:
        yield found
        output, _ = await process.communicate()
        found.append(json.loads(output))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def measure(workers: int, limits: Limits, seconds: float, *, with_flood: bool) -> dict[str, Any]:
    """B's TTFT, and how much A got."""
    with NamedTemporaryFile("w", suffix=".toml") as keys:
        keys.write(keys_file_text(with_defaults=limits == DEFAULT))
        keys.flush()
        return await _measure(workers, limits, seconds, keys.name, with_flood=with_flood)


async def _measure(workers: int, limits: Limits, seconds: float, keys_file: str, *, with_flood: bool) -> dict[str, Any]:
    share = fleet_rate(workers) / TENANTS
    environment = {
        **limits.environment,
        "WARMROUTE_AUTH__KEYS_FILE": keys_file,
        "WARMROUTE_AUTH__SALT_SECRET": "the salt secret of a benchmark",
        "WARMROUTE_POLICY__INITIAL_PREFILL_RATE": str(PREFILL_RATE * TIME_SCALE),
    }
    clients, others = Clients("", "b", seed=2), []
    async with simulated(workers) as urls, served(urls, environment, serve_command(urls)) as router:
        clients = Clients(router.url, "b", seed=2)
        async with connected() as session:
            if with_flood:
                async with flooded(router, TIMES * share, seconds) as others:
                    await clients.run(session, share, seconds)
            else:
                await clients.run(session, share, seconds)
    found: dict[str, Any] = {"limits": str(limits), "b": clients.outcome.summary()}
    if others:
        found["a"] = others[0]
    print(json.dumps(found), flush=True)
    return found


async def run(limits: Sequence[Limits], seconds: float, workers: int) -> int:
    alone = await measure(workers, Limits(0, 0), seconds, with_flood=False)
    beside = [await measure(workers, limit, seconds, with_flood=True) for limit in limits]
    p99_s = alone["b"]["p99_s"]
    for each in beside:
        each["b_p99_over_alone"] = round(each["b"]["p99_s"] / p99_s, 2) if "p99_s" in each["b"] else None
    ratios = {each["limits"]: each["b_p99_over_alone"] for each in beside if each["b_p99_over_alone"]}
    served_wholly = {each["limits"]: set(each["b"]["statuses"]) == {"200"} for each in beside}
    best = min((limit for limit in ratios if served_wholly[limit]), key=ratios.__getitem__, default=None)
    return conclude(
        "fairness",
        {
            "workers": workers,
            "b_requests_per_s": round(fleet_rate(workers) / TENANTS, 2),
            "a_requests_per_s": round(fleet_rate(workers) / TENANTS * TIMES, 1),
            "alone": alone,
            "beside": beside,
        },
        {
            f"with some limit B's p99 beside A is at most {MAX_RATIO} times that alone, and none of B's fails": (
                best is not None and ratios[best] <= MAX_RATIO
            ),
            f"with the defaults it is, too, {MAX_RATIO} times": ratios.get("default", MAX_RATIO) <= MAX_RATIO
            and served_wholly.get("default", True),
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=("bench", "workers", "flood"), default="bench")
    parser.add_argument("--limits", default="default,16/1000,32/1000,32,0")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--urls", default="")
    given = parser.parse_args()
    urls = given.urls.split(",")
    if given.role == "workers":
        uvloop.run(simulate(given.workers))
    elif given.role == "flood":
        uvloop.run(flood(urls[0], given.rate, given.seconds))
    else:
        return uvloop.run(run([Limits.parse(limit) for limit in given.limits.split(",")], given.seconds, given.workers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
