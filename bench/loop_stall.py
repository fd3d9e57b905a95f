"""How long bodies of 4 MB stop the event loop.

    python -m bench.loop_stall

The router runs in another process, as ``warmroute serve`` runs it, with a heartbeat of a millisecond on its loop. A beat's
stall is its delay, but at most the CPU time that the router's process used meanwhile, so time that the machine gave to
other processes does not count.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import uvloop

from bench.verdict import conclude, served
from router.app.serve import Running, serve
from router.config.loading import load_config
from router.runtime.logs import set_up_logging

BODY_BYTES = 4_000_000
POSTS = 20
MAX_STALL_MS = 15.0
BEAT_S = 0.001
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


class Heartbeat:
    """Beats on the running loop. A line on standard input prints and resets the worst stall."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worst_s = 0.0
        self._worst_wall_s = 0.0
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()
        self._beat()
        self._loop.add_reader(sys.stdin, self._tell)

    def _beat(self) -> None:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        late_s = wall_s - self._wall_s - BEAT_S
        self._worst_s = max(self._worst_s, min(late_s, cpu_s - self._cpu_s))
        self._worst_wall_s = max(self._worst_wall_s, late_s)
        self._wall_s, self._cpu_s = wall_s, cpu_s
        self._loop.call_later(BEAT_S, self._beat)

    def _tell(self) -> None:
        sys.stdin.readline()
        print(json.dumps([self._worst_s * 1e3, self._worst_wall_s * 1e3]), flush=True)
        self._worst_s = self._worst_wall_s = 0.0


async def serve_with_heartbeat(worker: str) -> None:
    set_up_logging("info")
    beats: list[Heartbeat] = []

    def begin(_router: Running) -> None:
        beats.append(Heartbeat())

    await serve(
        load_config(
            None, {}, {"server.port": 0, "admin.port": 0, "fleet.workers": [worker], "sessions.store": "memory://"}
        ),
        begin,
    )


def bodies() -> dict[str, bytes]:
    """Bodies of BODY_BYTES, compact and spaced, since the router reads the two in different ways."""
    chance = random.Random(1)
    words = [f"w{chance.getrandbits(20):x}" for _ in range(5000)]
    text = " ".join(chance.choices(words, k=BODY_BYTES // 6))
    escaped = '\n\t"\\é' * BODY_BYTES

    def many(characters: int) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": roles[number % 2], "content": text[: characters // 20_000]} for number in range(20_000)]

    shapes: dict[str, Callable[[int], list[dict[str, str]]]] = {
        "one long message": lambda characters: [{"role": "user", "content": text[:characters]}],
        "one message, heavily escaped": lambda characters: [{"role": "user", "content": escaped[:characters]}],
        "20,000 messages": many,
    }
    found = {}
    for name, shape in shapes.items():
        found[f"{name}, compact"] = _sized(
            lambda messages: json.dumps(
                {"model": "m", "messages": messages}, separators=(",", ":"), ensure_ascii=False
            ),
            shape,
        )
        found[f"{name}, spaced and streamed"] = _sized(
            lambda messages: json.dumps({"model": "m", "messages": messages, "stream": True}), shape
        )
    return found


def _sized(encode: Callable[[Any], str], shape: Callable[[int], Any]) -> bytes:
    """The largest body within BODY_BYTES, or nearly so."""
    least, most = 0, BODY_BYTES
    while most - least > 20_000:
        middle = (least + most) // 2
        if len(encode(shape(middle)).encode()) > BODY_BYTES:
            most = middle
        else:
            least = middle
    return encode(shape(least)).encode()


async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A worker that reads everything and answers at once."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
            await reader.readexactly(int(lines.get("content-length", 0)))
            answer = b'{"data":[{"id":"m"}]}' if "/v1/models" in head else b"{}" if head.startswith("POST") else b""
            writer.write(OK % (len(answer), answer))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def run() -> int:
    server = await asyncio.start_server(work, "127.0.0.1", 0, limit=8 << 20)
    worker = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    stalls: dict[str, Any] = {}
    command = (sys.executable, "-m", "bench.loop_stall", "serve", worker)
    async with served([], {}, command) as router, aiohttp.ClientSession() as session:

        async def read_worst() -> tuple[float, float]:
            assert router.process.stdin is not None
            assert router.process.stdout is not None
            router.process.stdin.write(b"\n")
            stall_ms, wall_ms = json.loads(await router.process.stdout.readline())
            return stall_ms, wall_ms

        async def measure(name: str, body: bytes) -> None:
            await read_worst()
            statuses = set()
            for _ in range(POSTS):
                async with session.post(f"{router.url}/v1/chat/completions", data=body) as response:
                    await response.read()
                    statuses.add(response.status)
            stall_ms, wall_ms = await read_worst()
            stalls[name] = {
                "bytes": len(body),
                "statuses": sorted(statuses),
                "stall_ms": round(stall_ms, 1),
                "with_what_others_took_ms": round(wall_ms, 1),
            }

        await measure("warm-up", b'{"model":"m","messages":[]}')
        await measure("small", b'{"model":"m","messages":[]}')
        for name, body in bodies().items():
            await measure(name, body)
    server.close()
    del stalls["warm-up"]
    worst = max(each["stall_ms"] for each in stalls.values())
    is_served = all(each["statuses"] == [200] for each in stalls.values())
    figures = {"posts_of_each": POSTS, "worst_stall_ms": worst, **stalls}
    return conclude(
        "loop_stall",
        figures,
        {
            f"no body of {BODY_BYTES:,} bytes stalls the loop over {MAX_STALL_MS:g} ms": is_served
            and worst <= MAX_STALL_MS
        },
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        uvloop.run(serve_with_heartbeat(sys.argv[2]))
    else:
        sys.exit(uvloop.run(run()))
