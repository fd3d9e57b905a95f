"""Writes and judges a benchmark's results: figures to bench/results/NAME.json, claims to the terminal."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.provenance import RESULTS, commit, machine


def conclude(name: str, figures: Mapping[str, Any], claims: Mapping[str, bool]) -> int:
    """Write the figures and print the claims. Returns 0 if every claim holds, else 1."""
    found = {
        "command": shlex.join(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "figures": figures,
        "claims": claims,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(json.dumps(figures, indent=1))
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    return 0 if all(claims.values()) else 1


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed. Expects at least one value."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


@dataclass(frozen=True, slots=True)
class ServedRouter:
    process: Process
    url: str
    admin_url: str


@asynccontextmanager
async def served(
    workers: Sequence[str], settings: Mapping[str, str], start: Sequence[str] = ()
) -> AsyncIterator[ServedRouter]:
    """``warmroute serve`` in another process. ``settings``: its environment. ``start``: another command that serves."""
    command = start or (sys.executable, "-m", "router", "serve")
    named = [part for worker in workers for part in ("--worker", worker)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *(() if start else ("--insecure-no-auth", "--port", "0", "--admin-port", "0", *named)),
        env={
            "PATH": "",
            "WARMROUTE_LOG__LEVEL": "info",
            "WARMROUTE_LOG__FORMAT": "text",
            "WARMROUTE_SERVER__LEAVE_S": "0",
            "WARMROUTE_SESSIONS__STORE": "memory://",
            **settings,
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    reading: asyncio.Task[None] | None = None
    try:
        url, admin_url = await asyncio.wait_for(_read_urls(process), 30)
        reading = asyncio.create_task(_read_on(process))
        yield ServedRouter(process, url, admin_url)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()
        if reading is not None:
            await reading


async def _read_urls(process: Process) -> tuple[str, str]:
    lines: list[bytes] = []
    assert process.stderr is not None
    async for line in process.stderr:
        if match := re.search(rb"serving url='([^']+)' admin='([^']+)'", line):
            return match[1].decode(), match[2].decode()
        lines.append(line)
    raise RuntimeError(f"the router did not start: {b''.join(lines[-20:]).decode()}")


async def _read_on(process: Process) -> None:
    """Reads the router's log on, so that the pipe never fills, and prints its errors."""
    assert process.stderr is not None
    async for line in process.stderr:
        if b" ERROR " in line or b"Traceback" in line:
            print(line.decode(), end="", file=sys.stderr)
