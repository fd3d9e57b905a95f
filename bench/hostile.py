"""The cost of hostile clients and workers for a router, and their effect on another tenant.

    python -m bench.hostile [--connections 2000] [--kinds NAME …]

Each kind of hostile client (``bench.hostile_clients``) and of hostile worker (``tests.e2e.hostile``) attacks a router of
its own with default settings for PRESS_S. Before and meanwhile another tenant sends RATE requests a second to a healthy
worker. ``bound_mb`` is the router's allowed memory for that kind: the settings that it fills, and a share for each
connection.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import uvloop

from bench.hostile_clients import KINDS as CLIENT_KINDS
from bench.pressure import Asked, Child, Router, hostile_clients, router_before, shaped_workers, until
from bench.verdict import conclude
from tests.e2e.hostile import KINDS as WORKER_KINDS

MB = 1 << 20
RATE = 20.0
WARM_UP_S, ALONE_S, PRESS_S, BACK_S = 1.0, 5.0, 8.0, 60.0
LOOK_EVERY_S = 0.1
MORE_MB, NEAR_SHARE = 64, 1.1
MAX_RATIO, MAX_MORE_MS = 2.0, 20.0

CONNECTION_KB = 10
"""Memory of an idle connection, by ``bench.idle``."""
SENDING_KB = CONNECTION_KB + 16
"""Memory of a connection that sends a body: an idle one, and its first read, which is kept until the head is checked."""
UNREAD_KB = 40
"""Memory of a client that does not read: bytes below the mark from which they count, and one read from a worker."""
HELD_MB, HEADS_MB, KEPT_MB = 512 / 2, 16, 512
"""Defaults: half of limits.max_held_bytes (a single tenant's share), limits.max_total_head_bytes,
resumption.max_total_kept_bytes."""


@dataclass(frozen=True, slots=True)
class Case:
    """``filled_mb``: memory that settings allow. ``connection_kb``: memory for each connection."""

    filled_mb: float = 0.0
    connection_kb: float = CONNECTION_KB

    def bound_mb(self, connections: int) -> float:
        return self.filled_mb + connections * self.connection_kb / 1024


CLIENTS = {
    "silence": Case(),
    "endless_heads": Case(HEADS_MB),
    "unfinished_heads": Case(HEADS_MB),
    "dripped_heads": Case(HEADS_MB),
    "unfinished_bodies": Case(HELD_MB, SENDING_KB),
    "dripped_bodies": Case(HELD_MB, SENDING_KB),
    "tiny_chunks": Case(HELD_MB, SENDING_KB),
    "costly_bodies": Case(HELD_MB, SENDING_KB),
    "unread_answers": Case(HELD_MB, UNREAD_KB),
    "unread_streams": Case(HELD_MB + KEPT_MB, UNREAD_KB),
    "pipelined": Case(HELD_MB, UNREAD_KB),
    "viewers": Case(),
}
WORKERS = dict.fromkeys(WORKER_KINDS, Case(HELD_MB))
NEVER_UP = {"models", "card"}
"""Kinds of workers whose models cannot be read."""
WORKER_CLIENTS = 16
"""Streams that a hostile worker serves at once."""


@dataclass(slots=True)
class Peak:
    memory_bytes: int = 0
    helpers_bytes: int = 0

    async def watch(self, router: Router) -> None:
        """Runs until cancelled."""
        while True:
            self.memory_bytes = max(self.memory_bytes, router.memory_bytes())
            self.helpers_bytes = max(self.helpers_bytes, router.helpers_bytes())
            await asyncio.sleep(LOOK_EVERY_S)


async def alone(router: Router) -> Asked:
    async with router.asked_on(RATE):
        await asyncio.sleep(WARM_UP_S)
    async with router.asked_on(RATE) as asked:
        await asyncio.sleep(ALONE_S)
    return asked


async def under(router: Router, pressure: AbstractAsyncContextManager[object]) -> tuple[Asked, Peak]:
    peak = Peak()
    watching = asyncio.create_task(peak.watch(router))
    async with pressure, router.asked_on(RATE) as asked:
        await asyncio.sleep(PRESS_S)
    watching.cancel()
    return asked, peak


async def back_s(router: Router, before_bytes: int) -> float:
    """Seconds until the router's memory is near its start, at most BACK_S."""
    began_at = time.monotonic()
    with suppress(TimeoutError):
        await until(lambda: router.memory_bytes() <= NEAR_SHARE * before_bytes, BACK_S)
    return round(time.monotonic() - began_at, 1)


async def figures_of(
    router: Router, case: Case, connections: int, pressure: AbstractAsyncContextManager[object]
) -> Any:
    before, before_bytes = await alone(router), router.memory_bytes()
    during, peak = await under(router, pressure)
    took_s = await back_s(router, before_bytes)
    return {
        "rss_mb_before": round(before_bytes / MB, 1),
        "rss_mb_peak": round(peak.memory_bytes / MB, 1),
        "rss_mb_after": round(router.memory_bytes() / MB, 1),
        "back_after_s": took_s,
        "bound_mb": round(case.bound_mb(connections), 1),
        "parsers_mb_peak": round(peak.helpers_bytes / MB, 1),
        "other_ms_p50": [before.ms(0.5), during.ms(0.5)],
        "other_ms_p99": [before.ms(0.99), during.ms(0.99)],
        "other_answers": len(during.times_s),
        "other_errors": len(during.errors),
        "first_error": during.errors[0] if during.errors else "",
    }


async def measure_clients(name: str, connections: int) -> Any:
    async with shaped_workers() as workers, router_before(workers, {"limits.max_key_connections": "0"}) as router:
        on_admin_port = CLIENT_KINDS[name].is_for_admin_port
        pressure = hostile_clients(name, router, connections, is_for_admin_port=on_admin_port)
        return await figures_of(router, CLIENTS[name], connections, pressure)


async def measure_worker(name: str) -> Any:
    async with AsyncExitStack() as stack:
        hostile = await stack.enter_async_context(Child("tests.e2e.hostile", name))
        workers = [(await stack.enter_async_context(shaped_workers()))[0], await hostile.url()]
        router = await stack.enter_async_context(router_before(workers, {}, 1 if name in NEVER_UP else None))
        pressure = hostile_clients("evil_streams", router, WORKER_CLIENTS, is_for_admin_port=False)
        return await figures_of(router, WORKERS[name], WORKER_CLIENTS, pressure)


def claims_of(found: dict[str, Any]) -> dict[str, list[str]]:
    """Each claim, and the cases that break it."""
    rules: dict[str, Callable[[dict[str, Any]], bool]] = {
        f"memory grows by its bound and {MORE_MB} MB at the most": lambda each: (
            each["rss_mb_peak"] <= each["rss_mb_before"] + each["bound_mb"] + MORE_MB
        ),
        f"memory is back within {NEAR_SHARE - 1:.0%} of what it was in {BACK_S:g} s": lambda each: (
            each["rss_mb_after"] <= NEAR_SHARE * each["rss_mb_before"]
        ),
        f"the other tenant's p99 is at most {MAX_RATIO:g} times what it was, or {MAX_MORE_MS:g} ms": lambda each: (
            each["other_ms_p99"][1] <= max(MAX_RATIO * each["other_ms_p99"][0], MAX_MORE_MS)
        ),
        "the other tenant has no error": lambda each: not each["other_errors"],
    }
    return {claim: [name for name, each in found.items() if not holds(each)] for claim, holds in rules.items()}


async def run(connections: int, names: list[str]) -> int:
    found: dict[str, Any] = {}
    for name in names:
        found[name] = await (measure_clients(name, connections) if name in CLIENTS else measure_worker(name))
        print(name, found[name], file=sys.stderr, flush=True)
    broken = claims_of(found)
    figures = {"connections": connections, "kinds": found, "broken": {claim: by for claim, by in broken.items() if by}}
    return conclude("hostile", figures, {claim: not by for claim, by in broken.items()})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--kinds", nargs="*", default=[*CLIENTS, *WORKERS], choices=[*CLIENTS, *WORKERS])
    options = parser.parse_args()
    return uvloop.run(run(options.connections, options.kinds))


if __name__ == "__main__":
    sys.exit(main())
