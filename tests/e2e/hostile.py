"""A worker in a process of its own that does what no worker should: ``python -m tests.e2e.hostile KIND`` prints its URL. And
clients of it, which read all that they get: ``python -m tests.e2e.hostile ask PORT``.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from router.wire.framing import frame

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
METRICS = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
MODELS = b'{"data":[{"id":"evil"}]}'
MB = 1 << 20
CLIENTS = 5

Pieces = AsyncIterator[bytes]


async def again_and_again(first: bytes, piece: bytes) -> Pieces:
    yield first
    while True:
        yield piece


async def dripping(first: bytes, large: bytes, drop: bytes) -> Pieces:
    yield first
    yield large
    while True:
        yield drop
        await asyncio.sleep(0.0005)


def stream_of(piece: bytes) -> Callable[[], Pieces]:
    return lambda: again_and_again(STREAM_HEAD + frame(TEXT), piece)


ANSWERS: dict[str, Callable[[], Pieces]] = {
    "comments": stream_of(frame(b":\n\n" * 20_000)),
    "empty_events": stream_of(frame(b"\n\n") * 8_000),
    "tiny_events": stream_of(frame(b"data: {}\n\n" * 5_000)),
    "tiny_chunks": stream_of(frame(b"a") * 10_000),
    "lines": stream_of(frame(b"data: 1\n" * MB + b"\n")),
    "returns": stream_of(frame(b":" + b"\r" * 8_000_000 + b"\n\n")),
    "brackets": stream_of(frame(b'data: {"choices":[' + b"{}," * 2_000_000 + b"{}]}\n\n")),
    "ids": stream_of(frame(b'data: {"a":[' + b'{"b":1,"token_ids":[]},' * 200_000 + b"1]}\n\n")),
    "finishes": stream_of(frame(b'data: {"choices":[{"finish_reason":"stop"}]}\n\n' * 1_000)),
    "drips": lambda: dripping(
        STREAM_HEAD + frame(TEXT), frame(b'data: {"a":"' + b"x" * 8_000_000), frame(b"yyyyyyyyyyyyyyyy")
    ),
    "interim_heads": lambda: again_and_again(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000),
    "head": lambda: again_and_again(b"HTTP/1.1 200 OK\r\n", b"x: " + b"a" * 1_000 + b"\r\n"),
    "body": lambda: again_and_again(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65_536),
    "trailers": lambda: again_and_again(STREAM_HEAD + frame(TEXT) + b"0\r\n", b"a: b\r\n" * 1_000),
}
PROBES: dict[str, dict[str, bytes]] = {
    "metrics": {"/metrics": METRICS + b'junk{a="b"} 1\n' * (4 * MB)},
    "metrics_line": {"/metrics": METRICS + b"vllm:cache_config_info{" + b"a" * (3 * MB) + b"} 1\n"},
    "metrics_figures": {"/metrics": METRICS + b"vllm:num_requests_running 1\n" * 100_000},
    "models": {"/v1/models": b'{"data":[' + b'{"id":"evil"},' * (2 * MB) + b"{}]}"},
    "card": {"/v1/models": b'{"data":[{"id":"evil","x":[' + b"[]," * 300_000 + b"1]}]}"},
    "names": {},
}
KINDS = (*ANSWERS, *PROBES)


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Hostile:
    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._looks = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, reader, writer)
        writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path = head.decode().split(" ", 2)[:2]
        if method == "GET":
            writer.write(whole(self._probed(path)))
            await writer.drain()
            return
        (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        async for piece in ANSWERS.get(self._kind, lambda: again_and_again(b"", b""))():
            writer.write(piece)
            await writer.drain()

    def _probed(self, path: str) -> bytes:
        if self._kind == "names" and path == "/v1/models":
            self._looks += 1
            names = (b'{"id":"%d-%d%b"}' % (self._looks, number, b"a" * 230) for number in range(1_000))
            return b'{"data":[{"id":"evil"},%b]}' % b",".join(names)
        usual = {"/metrics": METRICS, "/v1/models": MODELS}
        return PROBES.get(self._kind, {}).get(path, usual.get(path, b"{}"))


async def main(kind: str) -> None:
    hostile = Hostile(kind)
    server = await asyncio.start_server(hostile.serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def ask(port: int, model: str) -> bytes:
    """What a stream ended with."""
    body = b'{"model":"%b","stream":true,"messages":[{"role":"user","content":"hi"}]}' % model.encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    got = b""
    try:
        while piece := await reader.read(1 << 16):
            got = (got + piece)[-1000:]
    finally:
        writer.transport.abort()
    return got


async def ask_for_ever(port: int) -> None:
    while True:
        with contextlib.suppress(ConnectionError):
            await ask(port, "evil")
        await asyncio.sleep(0.1)


async def clients(port: int) -> None:
    await asyncio.gather(*(ask_for_ever(port) for _ in range(CLIENTS)))


if __name__ == "__main__":
    asyncio.run(clients(int(sys.argv[2])) if sys.argv[1] == "ask" else main(sys.argv[1]))
