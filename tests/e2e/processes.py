"""Simulated workers and routers in processes of their own, which can be killed, stopped and let go on."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from tempfile import NamedTemporaryFile
from urllib.parse import urlsplit

import aiohttp

START_S = 30.0


class WorkerProcess:
    """One simulated worker. It keeps its port from start to start."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: Process | None = None
        self.url = ""

    async def start(self) -> None:
        """Returns when it answers."""
        port = str(urlsplit(self.url).port) if self.url else "0"
        arguments = ("-m", "router", "simulate", "--workers", "1", "--base-port", port, *self._options)
        self._process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE, stderr=DEVNULL)
        assert self._process.stdout is not None
        async with asyncio.timeout(START_S):
            self.url = (await self._process.stdout.readline()).decode().strip()
        assert self.url.startswith("http://"), "the worker did not start"

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def running(self) -> int:
        """Requests that it works on."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as response:
            found = re.search(r"^vllm:num_requests_running\{[^}]*\} ([\d.]+)", await response.text(), re.MULTILINE)
            assert found is not None
            return int(float(found[1]))


@asynccontextmanager
async def worker_processes(count: int, *options: str) -> AsyncIterator[list[WorkerProcess]]:
    """All of them answer inside the block. Their token ids mean the same in each of them."""
    with NamedTemporaryFile() as vocabulary:
        async with AsyncExitStack() as stack:
            workers = [WorkerProcess("--vocabulary", vocabulary.name, *options) for _ in range(count)]
            for worker in workers:
                stack.push_async_callback(worker.kill)
            await asyncio.gather(*[worker.start() for worker in workers])
            yield workers


async def until_running(worker: WorkerProcess, is_so: Callable[[int], bool], timeout_s: float = 10.0) -> None:
    """Until it works on such a number of requests."""
    async with asyncio.timeout(timeout_s):
        while not is_so(await worker.running()):
            await asyncio.sleep(0.01)
