"""Routers that stop: is any request refused, is any stream cut?

    python -m bench.rolling

1. SIGTERM with 500 live streams that need less than the grace period: all must end well.
2. Two replicas behind one address, restarted in turn 20 times under load. The address is a typical load balancer: it polls
   each replica's /ready twice a second, and sends new connections only to ready replicas.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import uvloop

from bench.kills import SimulatedWorker
from bench.stream_kills import hear
from bench.verdict import conclude, served

STREAMS = 500
RESTARTS = 20
CLIENTS = 16
LOOK_S = 0.5
LEAVE_S = 2.0


def body_of(number: int, tokens: int) -> dict[str, Any]:
    message = {"role": "user", "content": f"Tell me of the {number}th thing. " * 20}
    return {"model": "sim", "max_tokens": tokens, "messages": [message]}


class Replica:
    """One router process on a port of its own."""

    def __init__(self, workers: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._workers = workers
        self._process: Process | None = None
        self.is_ready = False

    async def start(self) -> None:
        named = [part for worker in self._workers for part in ("--worker", worker)]
        ports = ("--port", str(self.port), "--admin-port", "0", "--insecure-no-auth")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router", "serve", *ports, *named),
            env={"PATH": "", "WARMROUTE_SESSIONS__STORE": "memory://", "WARMROUTE_SERVER__LEAVE_S": str(LEAVE_S)},
            stdout=DEVNULL,
            stderr=DEVNULL,
        )

    async def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return await self._process.wait()

    async def watch(self, session: aiohttp.ClientSession) -> None:
        while True:
            await self.look(session)
            await asyncio.sleep(LOOK_S)

    async def look(self, session: aiohttp.ClientSession) -> None:
        try:
            async with session.get(f"http://127.0.0.1:{self.port}/ready") as response:
                self.is_ready = response.status == 200
        except (aiohttp.ClientError, OSError):
            self.is_ready = False


class Balancer:
    """Sends each connection to the ready replica that has had fewer."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._replicas = replicas
        self._sent: Counter[int] = Counter()
        self.refused = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = [replica for replica in self._replicas if replica.is_ready]
        replica = min(ready or self._replicas, key=lambda each: self._sent[each.port])
        self._sent[replica.port] += 1
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", replica.port)
        except OSError:
            self.refused += 1
            writer.close()
            return
        await asyncio.gather(_pipe(reader, back_writer), _pipe(back_reader, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(ConnectionError):
        writer.close()


@asynccontextmanager
async def simulated(*options: str) -> AsyncIterator[list[str]]:
    workers = [SimulatedWorker(*options) for _ in range(2)]
    try:
        async with aiohttp.ClientSession() as session:
            for worker in workers:
                await worker.start()
            await asyncio.gather(*[worker.healthy(session) for worker in workers])
        yield [worker.url for worker in workers]
    finally:
        for worker in workers:
            await worker.kill()


async def stop_with_live_streams(session: aiohttp.ClientSession) -> dict[str, Any]:
    settings = {"WARMROUTE_SERVER__LEAVE_S": "5", "WARMROUTE_SERVER__DRAIN_S": "25"}
    async with (
        simulated("--time-scale", "1", "--itl-ms", "100", "--max-num-seqs", "300") as urls,
        served(urls, settings) as router,
    ):
        asking = [asyncio.create_task(hear(session, router.url, body_of(n, 120))) for n in range(STREAMS)]
        while await live(session, router.admin_url) < STREAMS:
            await asyncio.sleep(0.05)
        started = time.monotonic()
        router.process.terminate()
        heard = await asyncio.gather(*asking, return_exceptions=True)
        code = await router.process.wait()
    whole = sum(not isinstance(each, BaseException) and each.is_done for each in heard)
    return {"streams": STREAMS, "whole": whole, "exit": code, "seconds": round(time.monotonic() - started, 1)}


async def live(session: aiohttp.ClientSession, admin_url: str) -> int:
    async with session.get(f"{admin_url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return int(float(next(line for line in lines if line.startswith("warmroute_live_requests ")).split()[1]))


class Load:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self.outcomes: Counter[str] = Counter()
        self.is_over = False

    async def client(self, number: int) -> None:
        while not self.is_over:
            number += CLIENTS
            try:
                if number // CLIENTS % 2:
                    heard = await hear(self._session, self._url, body_of(number, 40))
                    self.outcomes["whole stream" if heard.is_done else "cut stream"] += 1
                else:
                    self.outcomes[await self._ask(number)] += 1
            except (aiohttp.ClientError, OSError, ValueError) as error:
                self.outcomes[f"{type(error).__name__}: {error}"] += 1

    async def _ask(self, number: int) -> str:
        async with self._session.post(f"{self._url}/v1/chat/completions", json=body_of(number, 40)) as response:
            answer = json.loads(await response.read())
            return "whole answer" if response.status == 200 and answer["choices"] else f"status {response.status}"


async def restart_in_turn(session: aiohttp.ClientSession) -> dict[str, Any]:
    async with simulated("--time-scale", "1", "--itl-ms", "20") as urls:
        replicas = [Replica(urls) for _ in range(2)]
        for replica in replicas:
            await replica.start()
        watching = [asyncio.create_task(replica.watch(session)) for replica in replicas]
        balancer = Balancer(replicas)
        server = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
        load = Load(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", session)
        await ready(replicas)
        clients = [asyncio.create_task(load.client(number)) for number in range(CLIENTS)]
        codes: Counter[int] = Counter()
        for number in range(RESTARTS):
            replica = replicas[number % 2]
            codes[await replica.stop()] += 1
            await replica.start()
            await replica.look(session)
            await ready(replicas)
        load.is_over = True
        await asyncio.gather(*clients)
        server.close()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for replica in replicas:
            await replica.stop()
    return {"restarts": RESTARTS, "outcomes": load.outcomes, "refused": balancer.refused, "exit_codes": codes}


async def ready(replicas: list[Replica]) -> None:
    while not all(replica.is_ready for replica in replicas):
        await asyncio.sleep(0.05)


async def run() -> int:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
        stopped = await stop_with_live_streams(session)
        rolled = await restart_in_turn(session)
    return conclude(
        "rolling",
        {"stopped": stopped, "rolled": rolled},
        {
            f"none of {STREAMS} live streams is cut by SIGTERM": stopped["whole"] == STREAMS and stopped["exit"] == 0,
            f"nobody is refused or cut by {RESTARTS} restarts of two replicas": (
                set(rolled["outcomes"]) == {"whole stream", "whole answer"} and not rolled["refused"]
            ),
        },
    )


if __name__ == "__main__":
    sys.exit(uvloop.run(run()))
