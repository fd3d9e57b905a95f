"""Streams whose workers are killed: does every client get every token exactly once?

    python -m bench.stream_kills [--streams 10000] [--every 2.0] [--answers bytes] [--ejection nervous]

Four simulated workers run as processes. At a steady interval one is killed with SIGKILL and started again half a second
later. Meanwhile streams of 30 tokens, 20 ms apart, run 48 at a time through ``warmroute serve``. A worker that is never
killed gives the expected answers. Half of the clients want token ids, half want usage; each token, id and count is
compared. Prompts are short, so a gap is the router's and not the prefill's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvloop

from bench.kills import SimulatedWorker, all_up, kill_in_turn
from bench.verdict import ServedRouter, conclude, percentile, served

CONCURRENCY = 48
CONVERSATIONS = 200
TOKENS = 30
EACH_TOKEN = ("--stream-interval-ms", "0")
SIMULATED = ("--time-scale", "1", "--itl-ms", "20", *EACH_TOKEN)
NERVOUS = {
    "WARMROUTE_PROBES__FAILURES": "1",
    "WARMROUTE_PROBES__EJECTION_S": "5",
    "WARMROUTE_PROBES__INTERVAL_S": "0.2",
}
OFF = {
    "WARMROUTE_PROBES__FAILURES": "100",
    "WARMROUTE_PROBES__EJECTION_S": "0.001",
    "WARMROUTE_PROBES__MAX_EJECTION_S": "0.001",
}
EJECTIONS: dict[str, dict[str, str]] = {"default": {}, "nervous": NERVOUS, "off": OFF}
MAX_P50_S, MAX_P99_S = 0.1, 1.0


@dataclass(slots=True)
class Heard:
    """One stream as its client received it."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    names: set[tuple[str, int, str]] = field(default_factory=set)
    roles: int = 0
    usage: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False
    longest_pause_s: float = 0.0


def body_of(number: int) -> dict[str, Any]:
    text = f"Tell me of the {number % CONVERSATIONS}th thing. "
    return {"model": "sim", "max_tokens": TOKENS, "messages": [{"role": "user", "content": text}], "temperature": 0}


async def hear(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Heard:
    """Reads one stream. Raises aiohttp's errors, and ValueError if it is not a stream of chunks."""
    heard, last = Heard(), 0.0
    async with session.post(f"{url}/v1/chat/completions", json={**body, "stream": True}) as response:
        if response.status != 200:
            raise ValueError(f"status {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            now = time.monotonic()
            heard.longest_pause_s, last = max(heard.longest_pause_s, now - (last or now)), now
            if line.strip() == b"data: [DONE]":
                heard.is_done = True
                continue
            take(json.loads(line[5:]), heard)
    return heard


def take(chunk: dict[str, Any], heard: Heard) -> None:
    if "error" in chunk:
        raise ValueError("error event")
    heard.names.add((chunk["id"], chunk["created"], chunk["model"]))
    if "prompt_token_ids" in chunk and not chunk["choices"]:
        raise ValueError("ids in a strange place")
    for choice in chunk["choices"]:
        heard.roles += "role" in choice["delta"]
        heard.text += choice["delta"].get("content") or ""
        heard.ids += choice.get("token_ids") or []
        if choice["finish_reason"]:
            heard.finish.append(choice["finish_reason"])
    if chunk.get("usage"):
        heard.usage.append({key: chunk["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")})


def differences(heard: Heard, expected: Heard, *, wants_ids: bool, wants_usage: bool) -> list[str]:
    wrong = {
        "text": heard.text != expected.text,
        "ids": heard.ids != (expected.ids if wants_ids else []),
        "finish": heard.finish != expected.finish,
        "id, created or model": len(heard.names) != 1,
        "role": heard.roles != 1,
        "usage": heard.usage != (expected.usage if wants_usage else []),
        "no [DONE]": not heard.is_done,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


class Load:
    def __init__(self, url: str, session: aiohttp.ClientSession, expected: list[Heard]) -> None:
        self._url = url
        self._session = session
        self._expected = expected
        self.outcomes: Counter[str] = Counter()
        self.pauses: list[float] = []

    async def run(self, streams: int) -> None:
        numbers = iter(range(streams))
        await asyncio.gather(*[self._client(numbers) for _ in range(CONCURRENCY)])

    async def _client(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            wants_ids, wants_usage = number % 2 == 0, number % 4 < 2
            body = body_of(number)
            if wants_ids:
                body["return_token_ids"] = True
            if wants_usage:
                body["stream_options"] = {"include_usage": True}
            try:
                heard = await hear(self._session, self._url, body)
            except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
                self.outcomes[f"{type(error).__name__}: {error}"] += 1
                continue
            expected = self._expected[number % CONVERSATIONS]
            wrong = differences(heard, expected, wants_ids=wants_ids, wants_usage=wants_usage)
            self.outcomes[", ".join(wrong) or "right"] += 1
            if wrong:
                print(f"stream {number}: {heard}\nexpected: {expected}", file=sys.stderr)
            self.pauses.append(heard.longest_pause_s)


async def expectations(session: aiohttp.ClientSession, *answers: str) -> list[Heard]:
    """The expected answers, from a worker that is never killed."""
    worker = SimulatedWorker("--time-scale", "100", *EACH_TOKEN, *answers)
    await worker.start()
    try:
        await worker.healthy(session)
        more = {"return_token_ids": True, "stream_options": {"include_usage": True}}
        return [await hear(session, worker.url, body_of(number) | more) for number in range(CONVERSATIONS)]
    finally:
        await worker.kill()


async def exposition(router: ServedRouter, session: aiohttp.ClientSession) -> str:
    async with session.get(f"{router.admin_url}/metrics") as response:
        return await response.text()


def gap_within(text: str, share: float) -> float:
    """Seconds: the bound of the histogram's bucket that contains this share of the router's own gaps."""
    found = re.findall(
        r'^warmroute_resumption_gap_seconds_bucket\{le="([\d.]+|\+Inf)"\} ([\d.e+]+)$', text, re.MULTILINE
    )
    total = float(found[-1][1]) if found else 0.0
    return next((float(bound) for bound, count in found if float(count) >= share * total), float("inf"))


def resumptions(text: str) -> Counter[str]:
    found = re.findall(r'^warmroute_resumptions_total\{cause="(\w+)",outcome="(\w+)"\} ([\d.e+]+)$', text, re.MULTILINE)
    return Counter({f"{cause}, {outcome}": int(float(value)) for cause, outcome, value in found})


async def run(arguments: argparse.Namespace) -> int:
    answers = ("--vocabulary", arguments.vocabulary, "--answers", arguments.answers)
    workers = [SimulatedWorker(*SIMULATED, *answers) for _ in range(4)]
    kills: Counter[int] = Counter()
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(60), read_bufsize=1 << 20
        ) as session:
            expected = await expectations(session, *answers)
            for worker in workers:
                await worker.start()
            await asyncio.gather(*[worker.healthy(session) for worker in workers])
            async with served([worker.url for worker in workers], EJECTIONS[arguments.ejection]) as router:
                await all_up(router, session)
                load, started = Load(router.url, session, expected), time.monotonic()
                killing = asyncio.create_task(kill_in_turn(workers, arguments.every, kills))
                await load.run(arguments.streams)
                elapsed = time.monotonic() - started
                killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)
                told = await exposition(router, session)
    finally:
        for worker in workers:
            await worker.kill()
    return verdict(arguments, load, sum(kills.values()), told, elapsed)


def verdict(arguments: argparse.Namespace, load: Load, kills: int, told: str, elapsed_s: float) -> int:
    """The figures and claims.

    The longest pauses, as many as resumptions, count as the resumed streams' pauses. A long pause of another stream among
    them can only make the figure worse.
    """
    resumed = resumptions(told)
    pauses = sorted(load.pauses, reverse=True)[: max(sum(resumed.values()), 1)]
    p50_s, p99_s = percentile(pauses, 0.5), percentile(pauses, 0.99)
    figures = {
        "streams": arguments.streams,
        "concurrency": CONCURRENCY,
        "ejection": arguments.ejection,
        "answers": arguments.answers,
        "elapsed_s": round(elapsed_s, 1),
        "kills": kills,
        "outcomes": load.outcomes,
        "resumptions": resumed,
        "routers_gap_p50_within_s": gap_within(told, 0.5),
        "routers_gap_p99_within_s": gap_within(told, 0.99),
        "pause_p50_s": round(p50_s, 3),
        "pause_p99_s": round(p99_s, 3),
        "pause_max_s": round(pauses[0], 3),
        "pause_p50_of_all_s": round(percentile(load.pauses, 0.5), 3),
    }
    changed = [each for each in (arguments.ejection, arguments.answers) if each not in ("default", "plain")]
    name = "_".join(["stream_kills", *changed])
    return conclude(
        name,
        figures,
        {
            f"all of {arguments.streams} streams are right, token by token, through {kills} kills": (
                dict(load.outcomes) == {"right": arguments.streams}
            ),
            f"a client whose worker died waits {MAX_P50_S:g} s or less, as a median": p50_s <= MAX_P50_S,
            f"and {MAX_P99_S:g} s or less in 99 of 100 cases": p99_s <= MAX_P99_S,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill workers under streams, and compare every token.")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between kills")
    parser.add_argument(
        "--answers", choices=["plain", "bytes"], default="plain", help="bytes: text whose characters tokens split"
    )
    parser.add_argument("--ejection", choices=list(EJECTIONS), default="default")
    given = parser.parse_args()
    with tempfile.NamedTemporaryFile() as shared:
        given.vocabulary = shared.name
        sys.exit(uvloop.run(run(given)))
