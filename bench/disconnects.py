"""How soon the worker's connection is closed after a client leaves, and whether anything of the request remains.

    python -m bench.disconnects

1,000 clients leave: half in the middle of a stream, half before the answer; half with FIN, half with RST. Router, worker
and clients share one process and one clock, so a time is from the client's close to the worker's.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import uvloop

from bench.verdict import conclude, percentile
from router.app.serve import Running, running
from router.config.loading import load_config

CLIENTS = 1000
AT_ONCE = 20
MAX_P99_S = 0.1
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


class Worker(asyncio.Protocol):
    """Begins a stream, or never answers. It notes the time when each request's connection ends."""

    def __init__(self, ended: dict[str, float], asked: dict[str, asyncio.Event]) -> None:
        self._ended = ended
        self._asked = asked
        self._held = b""
        self._id = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._id:
            self._ended[self._id] = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, found, body = self._held.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if not found or len(body) < (int(length[1]) if length else 0):
            return
        self._held = b""
        if head.startswith(b"GET "):
            answer = b'{"data":[{"id":"m"}]}' if b"/v1/models" in head else b""
            self._transport.write(OK % (len(answer), answer))
            return
        match = re.search(rb"X-Request-Id: (\S+)", head)
        self._id = match[1].decode() if match else ""
        if b'"stream": true' in body:
            self._transport.write(HEAD + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        self._asked[self._id].set()


async def leave(number: int, router: Running, left: dict[str, float], asked: dict[str, asyncio.Event]) -> None:
    is_stream, is_reset = number % 2 == 0, number % 4 < 2
    name = f"r{number}"
    asked[name] = asyncio.Event()
    url = urlsplit(router.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": is_stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nX-Request-Id: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await asked[name].wait()
    if is_stream:
        await reader.readuntil(EVENT)
    left[name] = time.monotonic()
    if is_reset:
        writer.transport.abort()
    else:
        writer.close()


async def read_state(router: Running) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{router.admin_url}/workers") as response:
            workers = (await response.json())["workers"]
        async with session.get(f"{router.admin_url}/metrics") as response:
            text = await response.text()
    live = re.search(r"^warmroute_live_requests (\S+)$", text, re.MULTILINE)
    return {
        "in_flight": [worker["in_flight"] for worker in workers],
        "queued_prefill_tokens": [worker["queued_prefill_tokens"] for worker in workers],
        "live_requests": float(live[1]) if live else None,
    }


async def run() -> int:
    ended: dict[str, float] = {}
    left: dict[str, float] = {}
    asked: dict[str, asyncio.Event] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Worker(ended, asked), "127.0.0.1", 0)
    worker = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = load_config(
        None, {}, {"server.port": 0, "admin.port": 0, "fleet.workers": [worker], "sessions.store": "memory://"}
    )
    async with server, running(config) as router:
        numbers = iter(range(CLIENTS))

        async def some() -> None:
            for number in numbers:
                await leave(number, router, left, asked)

        await asyncio.gather(*[some() for _ in range(AT_ONCE)])
        try:
            async with asyncio.timeout(5):
                while len(ended) < CLIENTS or router.data.live:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass
        state = await read_state(router)
    figures: dict[str, Any] = {"clients": CLIENTS, "at_once": AT_ONCE, "worker_connections_closed": len(ended), **state}
    kinds = {"all": range(CLIENTS), "stream": range(0, CLIENTS, 2), "before the answer": range(1, CLIENTS, 2)}
    for kind, numbers_of in kinds.items():
        taken = [ended[f"r{number}"] - left[f"r{number}"] for number in numbers_of if f"r{number}" in ended]
        figures[f"ms, {kind}"] = {
            name: round(percentile(taken, share) * 1e3, 2)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        }
    figures["kinds"] = Counter(
        f"{'stream' if number % 2 == 0 else 'before the answer'}, {'RST' if number % 4 < 2 else 'FIN'}"
        for number in range(CLIENTS)
    )
    return conclude(
        "disconnects",
        figures,
        {
            f"{CLIENTS} of {CLIENTS} worker connections are closed": len(ended) == CLIENTS,
            f"p99 is within {MAX_P99_S * 1e3:g} ms": figures["ms, all"]["p99"] <= MAX_P99_S * 1e3,
            "no lease and no request is left": not any(state["in_flight"]) and state["live_requests"] == 0,
        },
    )


if __name__ == "__main__":
    sys.exit(uvloop.run(run()))
