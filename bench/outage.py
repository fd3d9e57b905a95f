"""Redis stops under mixed load: do stateless requests notice, how soon do the others get an error, and is anything lost?

    python -m bench.outage [--seconds 60] [--fault stop|kill|kill-lose]

One router has one worker, whose answers take a third of a second. Requests come at a steady rate: half of them stateless,
the others turns of sessions, reads and responses. Redis is stopped with SIGSTOP, or killed and started again, either with
its data on disk (``appendfsync always``) or, with ``kill-lose``, with nothing. Afterwards each session's log is compared
with the clients' answers and the worker's prompts, as in ``bench.races``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import uvloop
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

from bench.races import Seen, check, read_log, worker_app
from bench.verdict import ServedRouter, conclude, percentile, served
from tests.sessions.stores.redis_servers import RedisProcess
from tests.sessions.stores.redis_servers import running as redis_running

Fault = Literal["stop", "kill", "kill-lose"]
SESSIONS = 60
RATE = 60.0
"""Requests a second."""
PAUSE_S = 0.1
"""Before each part of the worker's answers."""
MAX_ERROR_S = 0.25
MAX_RECOVERY_S = 1.0
BEFORE_S, BEHIND_S = 3.0, 5.0
ON_DISK = ("appendonly yes", "appendfsync always")


@dataclass
class Outage:
    """Monotonic times. ``since``: the stop of Redis. ``until``: its first answer afterwards."""

    since: float = float("inf")
    until: float = float("inf")


@dataclass
class Load:
    """Requests and their results.

    ``errors``: for each failed stateful request its end and the client's wait since the stop of Redis.
    """

    url: str
    client: ClientSession
    seen: Seen
    outage: Outage = field(default_factory=Outage)
    stateless: Counter[str] = field(default_factory=Counter)
    stateful: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[float, float]] = field(default_factory=list)
    spanned: int = 0
    """Turns that began before the outage and were acknowledged during it."""
    first_back_at: float = float("inf")
    late_s: list[float] = field(default_factory=list)
    """The delays with which this busy machine sent requests. They are no fault of the router."""

    async def run(self, seconds: float) -> None:
        """Open loop: the next request does not wait for the last."""
        chance = random.Random(1)
        kinds = (self._plain, self._turn, self._plain, self._turn, self._plain, self._read, self._plain, self._respond)
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as requests:
            for number in itertools.count():
                if time.monotonic() > until:
                    return
                requests.create_task(kinds[number % len(kinds)](f"{number}"))
                wake_at = time.monotonic() + chance.expovariate(RATE)
                await asyncio.sleep(wake_at - time.monotonic())
                self.late_s.append(time.monotonic() - wake_at)

    async def _plain(self, name: str) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": name}], "stream": int(name) % 3 == 0}
        self.stateless[await self._ask("/v1/chat/completions", body, f"re {name}")] += 1

    async def _turn(self, name: str) -> None:
        session = f"s{int(name) * 31 % SESSIONS}"
        body = {"model": "m", "messages": [{"role": "user", "content": name}], "stream": int(name) % 4 == 1}
        began = time.monotonic()
        outcome = await self._stateful(f"/v1/sessions/{session}/chat/completions", body, f"re {name}")
        if outcome == "ok":
            ended = time.monotonic()
            self.seen.taken[session][name] = (began, ended)
            self.spanned += began < self.outage.since < ended < self.outage.until

    async def _read(self, name: str) -> None:
        await self._stateful(f"/v1/sessions/s{int(name) % SESSIONS}/items?limit=4", None, '"has_more"')

    async def _respond(self, name: str) -> None:
        await self._stateful("/v1/responses", {"model": "m", "input": name}, f"re {name}")

    async def _stateful(self, path: str, body: Any, expected: str) -> str:
        began = time.monotonic()
        outcome = await self._ask(path, body, expected)
        ended = time.monotonic()
        if outcome == "ok":
            if began > self.outage.until:
                self.first_back_at = min(self.first_back_at, ended)
        elif outcome != "404":
            self.errors.append((ended, ended - max(began, self.outage.since)))
        self.stateful[outcome] += 1
        return outcome

    async def _ask(self, path: str, body: Any, expected: str) -> str:
        method = "GET" if body is None else "POST"
        try:
            async with self.client.request(method, f"{self.url}{path}", json=body) as answer:
                text = await answer.text()
        except (ClientError, OSError, TimeoutError) as error:
            return type(error).__name__
        if answer.status == 200:
            is_cut = isinstance(body, dict) and body.get("stream") and "[DONE]" not in text
            return "ok" if expected in text and not is_cut else "not whole"
        with contextlib.suppress(ValueError, KeyError):
            return "404" if answer.status == 404 else f"{answer.status} {json.loads(text)['error']['code']}"
        return f"{answer.status} {text[:80]}"


async def fail(server: RedisProcess, fault: Fault, seconds: float, outage: Outage) -> None:
    outage.since = time.monotonic()
    if fault == "stop":
        server.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        server.send(signal.SIGCONT)
    else:
        server.kill()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(server.start)
    outage.until = time.monotonic()


@contextlib.asynccontextmanager
async def loaded(store: str, seen: Seen) -> AsyncIterator[tuple[Load, ServedRouter]]:
    """A worker, a router before it, and clients that have sent nothing yet."""
    runner = web.AppRunner(worker_app(seen, PAUSE_S), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    worker = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with tempfile.TemporaryDirectory() as state_dir:
        settings = {
            "WARMROUTE_SESSIONS__STORE": store,
            "WARMROUTE_SESSIONS__STATE_DIR": state_dir,
            "WARMROUTE_SESSIONS__SECRET": f"a secret of this run, {time.time_ns()}",
        }
        async with (
            served([worker], settings) as router,
            ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(30)) as client,
        ):
            yield Load(router.url, client, seen), router
    await runner.cleanup()


def judge(session: str, log: list[tuple[str, str]], load: Load, fault: Fault) -> list[str]:
    """All faults of a log. With ``kill-lose`` only turns from after the outage may be in a log or a prompt."""
    if fault != "kill-lose":
        return check(session, log, load.seen)
    after = {name: times for name, times in load.seen.taken[session].items() if times[0] > load.outage.until}
    return check(session, log, Seen(before=load.seen.before, taken={session: after}))


async def measure(fault: Fault, seconds: float) -> tuple[dict[str, Any], dict[str, bool]]:
    """The figures and the claims."""
    seen = Seen(taken={f"s{number}": {} for number in range(SESSIONS)})
    with redis_running(() if fault == "kill-lose" else ON_DISK) as server:
        async with loaded(f"{server.url}/0", seen) as (load, router):
            running = asyncio.create_task(load.run(BEFORE_S + seconds + BEHIND_S))
            await asyncio.sleep(BEFORE_S)
            await fail(server, fault, seconds, load.outage)
            await running
            logs = {session: await read_log(load.client, router.url, session) for session in seen.taken}
    wrong = [each for session, log in logs.items() for each in judge(session, log, load, fault)]
    for each in wrong[:10]:
        print(each, file=sys.stderr)
    return figures_of(load, seconds, wrong), claims_of(load, wrong)


def figures_of(load: Load, seconds: float, wrong: list[str]) -> dict[str, Any]:
    waits = [wait for _, wait in load.errors] or [0.0]
    return {
        "seconds": seconds,
        "stateless": dict(load.stateless),
        "stateful": dict(load.stateful),
        "acknowledged_turns": sum(map(len, load.seen.taken.values())),
        "acknowledged_through_the_journal": load.spanned,
        "error_p50_ms": round(percentile(waits, 0.5) * 1e3, 1),
        "error_p99_ms": round(percentile(waits, 0.99) * 1e3, 1),
        "error_max_ms": round(max(waits) * 1e3, 1),
        "sent_late_p99_ms": round(percentile(load.late_s, 0.99) * 1e3, 1),
        "sent_late_max_ms": round(max(load.late_s) * 1e3, 1),
        "first_answer_after_s": round(load.first_back_at - load.outage.until, 3),
        "last_error_after_s": round(max((at for at, _ in load.errors), default=0.0) - load.outage.until, 3),
        "wrong": len(wrong),
    }


def claims_of(load: Load, wrong: list[str]) -> dict[str, bool]:
    return {
        "no stateless request fails": set(load.stateless) == {"ok"},
        "whoever cannot be served is told 503 state_unavailable": set(load.stateful)
        <= {"ok", "404", "503 state_unavailable"}
        and load.stateful["503 state_unavailable"] > 0,
        f"within {MAX_ERROR_S * 1e3:g} ms": max(wait for _, wait in load.errors) <= MAX_ERROR_S,
        "turns under way are acknowledged all the same": load.spanned > 0,
        f"sessions are served again by themselves, all of them within {MAX_RECOVERY_S:g} s": load.first_back_at
        - load.outage.until
        <= MAX_RECOVERY_S
        and max(at for at, _ in load.errors) - load.outage.until <= MAX_RECOVERY_S,
        "no log and no prompt has anything lost, doubled, reordered or invented": not wrong,
    }


async def run(faults: list[Fault], seconds: float) -> int:
    figures: dict[str, Any] = {}
    claims: dict[str, bool] = {}
    for fault in faults:
        figures[fault], found = await measure(fault, seconds)
        claims |= {f"{fault}: {claim}": holds for claim, holds in found.items()}
    return conclude("outage", figures, claims)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fault", choices=("stop", "kill", "kill-lose"), action="append")
    asked = parser.parse_args()
    sys.exit(uvloop.run(run(asked.fault or ["stop", "kill", "kill-lose"], asked.seconds)))
