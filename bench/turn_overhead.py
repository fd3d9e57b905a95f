"""The time that a stateful turn adds before its worker gets the request, by the length of its history.

    python -m bench.turn_overhead [--store redis://127.0.0.1:6379/0]

The worker runs in this process and notes the arrival of each request's first bytes. Each sample is a turn of a session,
followed by the whole prompt on the stateless route, whose time is subtracted. For comparison there is the plain pattern
without a router: get the session's JSON, parse it, append two messages, write it back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.verdict import conclude, percentile, served

ITEMS = (20, 200, 2000)
SESSIONS, TURNS = 30, 8
TEXT = "word " * 190
"""An item is about 1 kB."""
ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 190, "total_tokens": 199},
    }
).encode()
MODELS = b'{"data":[{"id":"m"}]}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
MAX_P50_S = 0.0015
MAX_GROWTH = 1.5


class Worker(asyncio.Protocol):
    """Answers everything at once. ``heard_at``: the time when the newest POST began to arrive."""

    heard_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._head = b""
        self._left = 0

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            if not self._head and data.startswith(b"POST"):
                Worker.heard_at = time.perf_counter()
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = next(
                (
                    int(line[15:])
                    for line in self._head[:end].split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            self._left = length - (len(self._head) - end - 4)
        if self._left <= 0:
            is_post, self._head, self._left = self._head.startswith(b"POST"), b"", 0
            answer = ANSWER if is_post else MODELS
            self._transport.write(HEAD % (len(answer), answer))  # type: ignore[attr-defined]


class Client:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def post(self, path: str, body: Any) -> float:
        """Seconds from the first sent byte to the worker's first byte, if the worker was reached."""
        data = json.dumps(body).encode()
        began = time.perf_counter()
        self._writer.write(
            b"POST %b HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(data), data)
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        body = await self._reader.readexactly(length)
        if b" 200 " not in head[:15]:
            raise RuntimeError((head + body[:500]).decode())
        return Worker.heard_at - began


def message(role: str, number: int) -> dict[str, str]:
    return {"role": role, "content": f"{number} {TEXT}"}


async def measure(client: Client, items: int) -> dict[str, Any]:
    stateful, stateless, small = [], [], []
    for session in range(SESSIONS):
        path = f"/v1/sessions/s{items}-{session}"
        history = [message("user" if at % 2 == 0 else "assistant", at) for at in range(items)]
        await client.post(f"{path}/items", {"items": history})
        for turn in range(TURNS):
            new = message("user", items + turn)
            history.append(new)
            took_s = await client.post(f"{path}/chat/completions", {"model": "m", "messages": [new]})
            plain_s = await client.post("/v1/chat/completions", {"model": "m", "messages": history})
            small_s = await client.post("/v1/chat/completions", {"model": "m", "messages": [new]})
            history.append({"role": "assistant", "content": TEXT})
            if turn:  # the first one makes the history warm
                stateful.append(took_s)
                stateless.append(plain_s)
                small.append(small_s)
    over_same = [one - other for one, other in zip(stateful, stateless, strict=True)]
    over_small = [one - other for one, other in zip(stateful, small, strict=True)]
    return {
        "turn_ms": spread(stateful),
        "same_prompt_stateless_ms": spread(stateless),
        "newest_message_stateless_ms": spread(small),
        "over_same_prompt_ms": spread(over_same),
        "over_newest_message_ms": spread(over_small),
    }


async def plain_pattern(store: str, items: int) -> dict[str, float]:
    """Against the same Redis, in this process; without Redis, the JSON work alone."""
    blob = json.dumps([message("user", at) for at in range(items)])
    taken = []
    redis = None
    if store.startswith("redis"):
        from redis.asyncio import Redis

        redis = Redis.from_url(store)
        await redis.set("plain", blob)
    for turn in range(40):
        began = time.perf_counter()
        text = await redis.get("plain") if redis else blob
        messages = json.loads(text or "[]")
        messages += [message("user", turn), message("assistant", turn)]
        written = json.dumps(messages)
        if redis:
            await redis.set("plain", written, ex=3600)
        taken.append(time.perf_counter() - began)
    if redis:
        await redis.aclose()
    return spread(taken)


def spread(seconds: list[float]) -> dict[str, float]:
    return {name: round(percentile(seconds, share) * 1e3, 3) for name, share in (("p50", 0.5), ("p99", 0.99))}


async def run(store: str) -> int:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Worker, "127.0.0.1", 0)
    worker = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory() as state_dir:
        settings = {
            "WARMROUTE_SESSIONS__STORE": store,
            "WARMROUTE_SESSIONS__STATE_DIR": state_dir,
            "WARMROUTE_SESSIONS__SECRET": "a secret of the benchmark",
            "WARMROUTE_LIMITS__MAX_MESSAGES": "5000",
        }
        async with served([worker], settings) as router:
            parts = urlsplit(router.url)
            client = Client(*await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20))
            figures: dict[str, Any] = {"store": store.partition(":")[0] or "sqlite"}
            for items in ITEMS:
                figures[str(items)] = {
                    **await measure(client, items),
                    "plain_pattern_ms": await plain_pattern(store, items),
                }
    server.close()
    p50s = [figures[str(items)]["over_same_prompt_ms"]["p50"] for items in ITEMS]
    small = [figures[str(items)]["over_newest_message_ms"]["p50"] for items in ITEMS]
    return conclude(
        f"turn-overhead-{figures['store']}",
        figures,
        {
            f"half of all turns cost at most {MAX_P50_S * 1e3:g} ms more than the same prompt": max(p50s)
            <= MAX_P50_S * 1e3,
            f"what a turn costs over a short request grows at most {MAX_GROWTH:g}-fold from 20 to 2,000 items": small[
                -1
            ]
            <= MAX_GROWTH * small[0],
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="", help="as sessions.store; empty: SQLite")
    sys.exit(uvloop.run(run(parser.parse_args().store)))
