"""The router's cost for each idle connection, and the cost of a new request beside them.

    python -m bench.idle

10,000 connections have had one answer each. The clients use several loopback addresses and run in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import uvloop

from bench.stalls import settled
from bench.verdict import ServedRouter, conclude, percentile, served

CLIENTS = 10_000
AT_ONCE = 100
NEW_REQUESTS = 200
MAX_KIB = 10.0
MAX_NEW_S = 0.05
BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A worker that answers at once."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST "):
                await reader.readexactly(len(BODY))
            answer = b'{"data":[{"id":"m"}]}' if b"/v1/models" in head else b"{}"
            writer.write(OK % (len(answer), answer))
    writer.close()


@asynccontextmanager
async def quick_worker() -> AsyncIterator[str]:
    """The URL of a worker that answers at once."""
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(work(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Idler(asyncio.Protocol):
    """Sends one request and then keeps its connection idle."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(POST)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 200") and not self.answered.done():
            self.answered.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        self.is_open = False


async def idle(router: ServedRouter, number: int) -> Idler:
    url = urlsplit(router.url)
    _, client = await asyncio.get_running_loop().create_connection(
        Idler, str(url.hostname), url.port or 0, local_addr=(f"127.0.0.{2 + number % 8}", 0)
    )
    await client.answered
    return client


async def run() -> int:
    _, granted = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, granted))
    async with quick_worker() as worker, served([worker], {"WARMROUTE_LIMITS__KEEPALIVE_S": "600"}) as router:
        process = psutil.Process(router.process.pid)
        clients = [await idle(router, number) for number in range(AT_ONCE)]
        await settled(process)
        before = process.memory_info().rss
        for begun in range(AT_ONCE, CLIENTS + AT_ONCE, AT_ONCE):
            clients += await asyncio.gather(*(idle(router, number) for number in range(begun, begun + AT_ONCE)))
        await settled(process)
        full, cpu = process.memory_info().rss, process.cpu_times()
        await asyncio.sleep(5.0)
        cpu_after = process.cpu_times()
        times = []
        for number in range(NEW_REQUESTS):
            started = time.perf_counter()
            client = await idle(router, number)
            times.append(time.perf_counter() - started)
            client.transport.abort()
        still_open = sum(client.is_open for client in clients)
        for client in clients:
            client.transport.abort()
    each_kib = (full - before) / CLIENTS / 1024
    figures: dict[str, Any] = {
        "connections": CLIENTS,
        "still_open": still_open,
        "rss_mb_before": round(before / 2**20, 1),
        "rss_mb_with_them": round(full / 2**20, 1),
        "kib_per_connection": round(each_kib, 2),
        "cpu_share_while_idle": round((cpu_after.user + cpu_after.system - cpu.user - cpu.system) / 5.0, 3),
        "new_request_ms_p50": round(percentile(times, 0.5) * 1e3, 2),
        "new_request_ms_max": round(max(times) * 1e3, 2),
    }
    return conclude(
        "idle",
        figures,
        {
            f"an idle connection costs at most {MAX_KIB:g} KiB": each_kib <= MAX_KIB,
            "all of them stay": still_open == len(clients),
            f"a new connection and its request take at most {MAX_NEW_S * 1e3:g} ms": max(times) <= MAX_NEW_S,
        },
    )


if __name__ == "__main__":
    sys.exit(uvloop.run(run()))
