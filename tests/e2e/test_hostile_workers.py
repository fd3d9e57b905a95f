"""One hostile worker beside others, each in a process of its own: whatever it sends, others are served and memory stays.

What a stall of the loop is, depends on the machine, so the bounds are some ten times what is seen on a quiet one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.hostile import KINDS, ask
from tests.e2e.streams import DONE, LAST, TEXT
from tests.e2e.test_drain import url_of
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, scripted

pytestmark = pytest.mark.system

SECONDS = 3.0
P99_S, WORST_S = 0.5, 2.0
MORE_MB = 400
"""Beyond what a router has at rest: as much as five whole answers may be, which count against ``max_held_bytes``."""


async def serve_well(_asked: Asked, peer: Peer) -> None:
    await peer.send(STREAM_HEAD, *map(frame, (TEXT, LAST, DONE)), LAST_CHUNK)


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, stdout=PIPE, stderr=PIPE)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


@asynccontextmanager
async def router_before(*workers: str) -> AsyncIterator[tuple[int, int]]:
    """A router's data port and process id."""
    flags = ["--port", "0", "--admin-port", "0", "--insecure-no-auth", "--session-store", "none"]
    async with process("router", "serve", *flags, *(f"--worker={worker}" for worker in workers)) as child:
        async with asyncio.timeout(30):
            port = urlsplit(await url_of(child)).port
        assert child.stderr is not None
        reading = asyncio.create_task(child.stderr.read())
        try:
            yield port or 0, child.pid
        finally:
            reading.cancel()


def memory_mb(pid: int) -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


async def victims_times(port: int) -> list[float]:
    times, ends_at = [], time.perf_counter() + SECONDS
    while time.perf_counter() < ends_at:
        began_at = time.perf_counter()
        assert b"[DONE]" in await ask(port, "m")
        times.append(time.perf_counter() - began_at)
        await asyncio.sleep(0.005)
    return sorted(times)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hostile_worker_holds_up_nobody_and_takes_no_memory(kind: str) -> None:
    async with (
        scripted(serve_well) as well,
        process("tests.e2e.hostile", kind) as hostile,
    ):
        assert hostile.stdout is not None
        url = (await hostile.stdout.readline()).decode().strip()
        async with router_before(well.url, url) as (port, pid):
            while b"[DONE]" not in await ask(port, "m"):
                await asyncio.sleep(0.05)
            before_mb = memory_mb(pid)
            async with process("tests.e2e.hostile", "ask", str(port)):
                times = await victims_times(port)
            p99_s = times[int(len(times) * 0.99)]
            grown_mb = memory_mb(pid) - before_mb
            figures = f"p99 {p99_s:.3f} s, worst {times[-1]:.3f} s, {grown_mb:+.0f} MB"
            print(f"{kind}: {figures}")  # with -s: how near the bounds it is
            assert p99_s < P99_S
            assert times[-1] < WORST_S
            assert grown_mb < MORE_MB
