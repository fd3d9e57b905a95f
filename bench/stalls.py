"""The router's memory and CPU for clients that stop reading a fast, endless stream.

    python -m bench.stalls [--text]

Each event has one token, as in vLLM when a client wants token ids. With ``--text`` each event has 100 characters instead.
Then the sent text is most of the cost, since the router keeps it for a resumption, up to a separate bound.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import uvloop

from bench.verdict import conclude, served

CLIENTS = 200
MAX_GROWTH_KB = {False: 400, True: 500}
"""Growth for each client, without and with ``--text``: a read from the worker, the write buffer's high-water mark, two
connections, and the stream's kept bytes."""
HOLD_S = 5.0
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1795414910,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null,"token_ids":[12345]}]}\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


def burst(*, has_text: bool) -> bytes:
    event = EVENT % (b"word " * 20 if has_text else b" word")
    return (b"%x\r\n%b\r\n" % (len(event), event)) * 500


async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, events: bytes) -> None:
    """Streams as fast as the router reads."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET "):
                answer = b'{"data":[{"id":"m"}]}' if b"/v1/models" in head else b""
                writer.write(OK % (len(answer), answer))
                continue
            writer.write(HEAD)
            while True:
                writer.write(events)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def begin(url: str) -> asyncio.StreamWriter:
    """A client that reads the beginning and then nothing."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1024)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    assert re.match(rb"HTTP/1.1 200", await reader.readuntil(b"\r\n"))
    cast(asyncio.Transport, writer.transport).pause_reading()
    return writer


async def settled(process: psutil.Process) -> None:
    """Waits until the router has been idle for a second."""
    while True:
        before = process.cpu_times()
        await asyncio.sleep(1.0)
        after = process.cpu_times()
        if after.user + after.system - before.user - before.system < 0.1:
            return


async def run(*, has_text: bool) -> int:
    events = burst(has_text=has_text)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(work(reader, writer, events)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
    worker = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with served([worker], {"WARMROUTE_LIMITS__WRITE_STALL_S": "600"}) as router:
        process = psutil.Process(router.process.pid)

        def rss() -> int:
            return int(process.memory_info().rss)

        first = [await begin(router.url) for _ in range(5)]
        await asyncio.wait_for(settled(process), 60)
        before, started = rss(), time.monotonic()
        clients = [await begin(router.url) for _ in range(CLIENTS)]
        await asyncio.wait_for(settled(process), 60)
        full, full_s = rss(), time.monotonic() - started
        cpu = process.cpu_times()
        await asyncio.sleep(HOLD_S)
        held, cpu_after = rss(), process.cpu_times()
        for client in first + clients:
            client.transport.abort()
        await asyncio.sleep(1.0)
        after = rss()
    server.close()
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
    growth_kb = (held - before) / CLIENTS / 1024
    figures: dict[str, Any] = {
        "clients": CLIENTS,
        "text": has_text,
        "rss_mb_before": round(before / 2**20, 1),
        "rss_mb_stalled": round(full / 2**20, 1),
        f"rss_mb_{HOLD_S:g}_s_later": round(held / 2**20, 1),
        "rss_mb_after_they_left": round(after / 2**20, 1),
        "growth_kb_per_client": round(growth_kb, 1),
        "seconds_until_all_stalled": round(full_s, 1),
        "cpu_s_while_held": round(cpu_after.user + cpu_after.system - cpu.user - cpu.system, 2),
    }
    return conclude(
        "stalls-text" if has_text else "stalls",
        figures,
        {
            f"a stalled client costs under {MAX_GROWTH_KB[has_text]} kB": growth_kb < MAX_GROWTH_KB[has_text],
            "memory is flat while they stall": abs(held - full) < 2 << 20,
            "the router does nothing for them": figures["cpu_s_while_held"] < 0.05 * HOLD_S,
        },
    )


if __name__ == "__main__":
    sys.exit(uvloop.run(run(has_text="--text" in sys.argv)))
