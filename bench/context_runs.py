"""Runs of whole conversations. Each run begins cold: it has its own router, fleet and summariser."""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from aiohttp import ClientSession, ClientTimeout, TCPConnector

from bench.context_client import (
    HistorySender,
    Keep,
    Marks,
    Sample,
    Sender,
    SessionSender,
    Setting,
    converse,
    drop_oldest,
    drop_to_low,
    keep_all,
    keep_newest,
    system_message,
)
from bench.dialogues import Count, Turn
from bench.scripted_summariser import SUMMARY_TOKENS, Summariser, summarising
from bench.verdict import ServedRouter, served

KEEPERS: Mapping[str, Keep] = {
    "none": keep_all,
    "first-in-first-out": drop_oldest,
    "last-20-messages": keep_newest,
    "window-by-client": drop_to_low,
}
STRATEGIES = ("none", "window", "summary", "recall", "hybrid")
SESSION = "session-"
"""The prefix of ways in which the router keeps the history."""
WAYS = (*KEEPERS, *(SESSION + strategy for strategy in STRATEGIES))
READY_S = 30.0
ITL_MS = 0.5
_SERIES = re.compile(r"warmroute_(?:context|compaction|janitor|recall|prefix_breaks)\w*(?<!_bucket)(?<!_created)[{ ]")


@dataclass(frozen=True, slots=True)
class Plan:
    """A run to do.

    ``worker``: URL of a real worker; empty: eight simulated ones, whose time runs ``time_scale`` times as fast. ``window``:
    tokens. ``extra``: more environment variables of the router.
    """

    system: str
    conversations: Sequence[Sequence[Turn]]
    count: Count
    window: int
    time_scale: float
    pause_s: float
    extra: Mapping[str, str]
    model: str = "sim"
    worker: str = ""


class Found(NamedTuple):
    """The results. ``summary_tokens``: read and written by the summariser. ``series``: the router's metrics."""

    sessions: list[list[Sample]]
    summary_tokens: int
    summary_calls: int
    series: dict[str, float]


async def run(plan: Plan, way: str, watermarks: Marks) -> Found:
    """Runs all conversations at once. Raises RuntimeError if something does not start or answers wrongly."""
    async with standing(plan, way, watermarks) as (http, router, summariser):
        setting = setting_of(plan, router)
        async with asyncio.TaskGroup() as tasks:
            talks = [
                tasks.create_task(converse(http, setting, sender_of(plan, way, watermarks, number), turns))
                for number, turns in enumerate(plan.conversations)
            ]
        series = await series_of(http, router)
        return Found([talk.result() for talk in talks], summariser.tokens, summariser.calls, series)


def setting_of(plan: Plan, router: ServedRouter) -> Setting:
    return Setting(router.url, plan.model, plan.system, plan.window, plan.count, plan.pause_s)


@asynccontextmanager
async def standing(
    plan: Plan, way: str, watermarks: Marks
) -> AsyncIterator[tuple[ClientSession, ServedRouter, Summariser]]:
    """Starts all processes of a run, cold. Raises RuntimeError if one does not start."""
    async with AsyncExitStack() as stack:
        state_dir = stack.enter_context(tempfile.TemporaryDirectory())
        workers = [plan.worker] if plan.worker else await stack.enter_async_context(simulated(plan))
        summariser = await stack.enter_async_context(summarising(plan.count))
        settings = {**_settings(way, watermarks, summariser.url, state_dir), **plan.extra}
        router = await stack.enter_async_context(served(workers, settings))
        http = await stack.enter_async_context(
            ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(600), read_bufsize=1 << 22)
        )
        await _all_up(http, router, len(workers))
        yield http, router, summariser


def _settings(way: str, watermarks: Marks, summary_url: str, state_dir: str) -> dict[str, str]:
    always = {
        "WARMROUTE_LIMITS__MAX_MESSAGES": "5000",
        "WARMROUTE_RESUMPTION__MAX_ATTEMPTS": "0",  # else a simulated worker spends most of its time on writing token ids
        "WARMROUTE_SESSIONS__STATE_DIR": state_dir,
        "WARMROUTE_SESSIONS__SECRET": "a secret of the benchmark",
    }
    if not way.startswith(SESSION):
        return always
    return {
        **always,
        "WARMROUTE_CONTEXT__STRATEGY": way.removeprefix(SESSION),
        "WARMROUTE_CONTEXT__HIGH_TOKENS": str(watermarks.high),
        "WARMROUTE_CONTEXT__LOW_TOKENS": str(watermarks.low),
        "WARMROUTE_CONTEXT__SUMMARY_URL": summary_url,
        "WARMROUTE_CONTEXT__SUMMARY_TOKENS": str(min(SUMMARY_TOKENS, watermarks.low // 5)),
        "WARMROUTE_CONTEXT__SUMMARY_RETRY_S": "0.1",  # a wall second has dozens of turns here, and a user's none
    }


def sender_of(plan: Plan, way: str, watermarks: Marks, number: int) -> Sender:
    system = system_message(plan.system)
    if way.startswith(SESSION):
        return SessionSender(system, name_of(number))
    return HistorySender(system, KEEPERS[way], watermarks)


def name_of(number: int) -> str:
    """The name of a conversation's session."""
    return f"conversation-{number}"


@asynccontextmanager
async def simulated(plan: Plan) -> AsyncIterator[list[str]]:
    """Eight workers in another process, with vLLM's block size and a cache that holds every conversation."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "simulate", "--workers", "8", "--base-port", "0"),
        *("--cache-blocks", "40000", "--block-tokens", "16", "--prefill-rate", "15000"),
        *("--itl-ms", str(ITL_MS), "--time-scale", str(plan.time_scale)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            urls = [(await process.stdout.readline()).decode().strip() for _ in range(8)]
        if not all(url.startswith("http") for url in urls):
            raise RuntimeError("the simulated fleet did not start")
        yield urls
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _all_up(http: ClientSession, router: ServedRouter, workers: int) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            async with http.get(f"{router.admin_url}/workers") as answer:
                states = [worker.get("state") for worker in (await answer.json())["workers"]]
            if states == ["up"] * workers:
                return
            await asyncio.sleep(0.05)


async def series_of(http: ClientSession, router: ServedRouter) -> dict[str, float]:
    """The router's metrics of its contexts; empty if it has none."""
    async with http.get(f"{router.admin_url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if _SERIES.match(line))}
    return {name: value for name, value in found.items() if value}
