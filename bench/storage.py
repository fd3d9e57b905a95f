"""One tenant fills a small disk. Do other tenants' turns continue, is anything lost, and what fails on a full disk?

    python -m bench.storage [--seconds 60] [--mib 200]        (as root: the disk is a tmpfs)

Acme uses sixteen connections for conversations of megabytes, items, forks and turns. Beta takes turns in 40 sessions at a
steady rate and notes the acknowledged ones. Afterwards beta's sessions are compared with these notes. Then another program
fills the disk, and the router is killed and started again. Stateless requests and deletions are tried, and turns once there
is room again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.verdict import ServedRouter, conclude, percentile, served
from router.simulator import SimulatorSettings, start_fleet

KEYS = {tenant: f"wr-key-of-{tenant}" for tenant in ("acme", "beta")}
CONNECTIONS = 16
SESSIONS = 40
RATE = 20.0
"""Beta's turns a second."""
MODEL = "sim"
MEGABYTES = [200_000, 1_000_000, 4_000_000]

Ask = Callable[[str, str, Any], Awaitable[tuple[int, Any]]]


@contextmanager
def small_disk(mib: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


@asynccontextmanager
async def router_on(disk: Path, workers: list[str]) -> AsyncIterator[ServedRouter]:
    keys = ",".join(f"{tenant}:{sha256(key.encode()).hexdigest()}" for tenant, key in KEYS.items())
    settings = {
        "WARMROUTE_SESSIONS__STORE": f"sqlite:///{disk}/sessions.db",
        "WARMROUTE_SESSIONS__STATE_DIR": str(disk),
        "WARMROUTE_AUTH__KEYS": keys,
        "WARMROUTE_AUTH__SALT_SECRET": "a secret of the benchmark",
    }
    named = [part for worker in workers for part in ("--worker", worker)]
    start = (sys.executable, "-m", "router", "serve", "--port", "0", "--admin-port", "0", *named)
    async with served(workers, settings, start) as router:
        yield router


@asynccontextmanager
async def asking(router: ServedRouter, tenant: str) -> AsyncIterator[Ask]:
    headers = {"Authorization": f"Bearer {KEYS[tenant]}"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(30)) as session:

        async def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
            async with session.request(method, router.url + path, json=body) as answer:
                text = await answer.read()
                return answer.status, json.loads(text) if text else None

        yield ask


def says(text: str) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": text}]}


async def fill(ask: Ask, number: int, until: float, statuses: Counter[str]) -> None:
    """The requests of one of acme's connections."""
    lots = random.Random(number)
    made: list[str] = []
    while time.monotonic() < until:
        text = "x" * lots.choice(MEGABYTES)
        items = {"items": [{"type": "message", "role": "user", "content": text}]}
        path, body = lots.choice(
            [
                ("/v1/conversations", items),
                (f"/v1/sessions/acme-{number}/items", items),
                (f"/v1/sessions/acme-{number}/fork", {"session_id": f"fork-{number}-{lots.random()}"}),
                (f"/v1/sessions/acme-{number}/chat/completions", says(text[:20_000])),
                ("/v1/responses", {"model": MODEL, "input": text[:20_000], "max_output_tokens": 16}),
            ]
        )
        try:
            status, answer = await ask("POST", path, body)
        except (aiohttp.ClientError, TimeoutError):
            statuses["no answer"] += 1
            continue
        if status == 200 and path == "/v1/conversations":
            made.append(answer["id"])
        code = answer.get("error", {}).get("code") if isinstance(answer.get("error"), dict) else ""
        statuses[f"{status} {code or ''}".strip()] += 1


@dataclass
class Beta:
    said: dict[str, list[str]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)

    async def turn(self, ask: Ask, session: str, text: str) -> None:
        began_at = time.monotonic()
        status, _ = await ask("POST", f"/v1/sessions/{session}/chat/completions", says(text))
        self.times.append(time.monotonic() - began_at)
        self.statuses[status] += 1
        if status == 200:
            self.said.setdefault(session, []).append(text)

    async def take_turns(self, ask: Ask, seconds: float) -> None:
        under_way: dict[str, asyncio.Task[None]] = {}
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            session = f"beta-{number % SESSIONS}"
            if (before := under_way.get(session)) is not None:
                await before
            under_way[session] = asyncio.create_task(self.turn(ask, session, f"turn {number}"))
            number += 1
            await asyncio.sleep(1 / RATE)
        await asyncio.gather(*under_way.values())

    async def lost(self, ask: Ask) -> int:
        """Acknowledged turns that their session's log does not have."""
        lost = 0
        for session, texts in self.said.items():
            status, page = await ask("GET", f"/v1/sessions/{session}/items?limit=100", None)
            found: set[str] = set()
            while status == 200:
                found |= {part["text"] for item in page["data"] for part in item["content"] if "text" in part}
                if not page["has_more"]:
                    break
                last = page["last_id"]
                status, page = await ask("GET", f"/v1/sessions/{session}/items?limit=100&after={last}", None)
            lost += sum(text not in found for text in texts)
        return lost


def take_the_rest(disk: Path) -> Path:
    path = disk / "others"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"z" * 65536):
            pass
    return path


async def first_ok(ask: Ask, path: str, body: Any, within_s: float) -> float | None:
    """Seconds until the answer is 200; None: not in time."""
    began_at = time.monotonic()
    while time.monotonic() - began_at < within_s:
        if (await ask("POST", path, body))[0] == 200:
            return time.monotonic() - began_at
        await asyncio.sleep(0.1)
    return None


async def on_a_full_disk(disk: Path, workers: list[str]) -> dict[str, Any]:
    others = take_the_rest(disk)
    async with router_on(disk, workers) as router, asking(router, "beta") as ask:
        found: dict[str, Any] = {}
        found["stateless"] = dict(
            Counter([(await ask("POST", "/v1/chat/completions", says("hi")))[0] for _ in range(50)])
        )
        found["deletions"] = dict(
            Counter([(await ask("DELETE", f"/v1/sessions/beta-{number}", None))[0] for number in range(5)])
        )
        others.unlink()
        found["turn_after_s"] = await first_ok(ask, "/v1/sessions/beta-9/chat/completions", says("again"), 20)
    return found


async def measure(seconds: float, mib: int) -> int:
    settings = SimulatorSettings(workers=2, base_port=0, time_scale=1000.0, models=(MODEL,))
    with small_disk(mib) as disk:
        async with await start_fleet(settings) as fleet:
            workers = list(fleet.urls)
            alone, beside = Beta(), Beta()
            acme: Counter[str] = Counter()
            async with (
                router_on(disk, workers) as router,
                asking(router, "acme") as fills,
                asking(router, "beta") as ask,
            ):
                await alone.take_turns(ask, 10)
                until = time.monotonic() + seconds
                filling = [asyncio.create_task(fill(fills, number, until, acme)) for number in range(CONNECTIONS)]
                await beside.take_turns(ask, seconds)
                await asyncio.gather(*filling)
                used = os.statvfs(disk)
                share = 1 - used.f_bavail / used.f_blocks
                lost = await beside.lost(ask)
                router.process.kill()
                await router.process.wait()
            full = await on_a_full_disk(disk, workers)
    p99_alone, p99 = percentile(alone.times, 0.99), percentile(beside.times, 0.99)
    figures = {
        "disk_mib": mib,
        "disk_used_share": round(share, 3),
        "acme": dict(acme),
        "beta_statuses": {str(status): count for status, count in beside.statuses.items()},
        "beta_p50_p99_ms": [round(1000 * percentile(beside.times, 0.5), 1), round(1000 * p99, 1)],
        "beta_alone_p50_p99_ms": [round(1000 * percentile(alone.times, 0.5), 1), round(1000 * p99_alone, 1)],
        "beta_lost": lost,
        "full_disk": full,
    }
    claims = {
        "others' turns all go on": set(beside.statuses) == {200},
        "nothing acknowledged of theirs is lost": lost == 0,
        "the tenant that fills the disk is told so": any("storage_full" in status for status in acme),
        "stateless requests do not notice a full disk": set(full["stateless"]) == {200},
        "deletions work on a full disk after a restart": set(full["deletions"]) == {200},
        "turns go on when there is room": full["turn_after_s"] is not None,
    }
    return conclude("storage", figures, claims)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--mib", type=int, default=200)
    options = parser.parse_args()
    return uvloop.run(measure(options.seconds, options.mib))


if __name__ == "__main__":
    sys.exit(main())
