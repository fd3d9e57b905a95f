"""A worker whose answers have the shape that a request's model names.

    python -m bench.shaped_worker MODEL …        prints its URL

It writes as fast as the router reads, so the clients decide how much the router must hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator

MB = 1 << 20
LARGE_BYTES = 4 * MB
LONG_BYTES = 320 << 10
READ_BYTES = 64 << 20
"""The read buffer, so large that a body is never held back."""

METRICS = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'

Pieces = AsyncIterator[bytes]


def whole(body: bytes, content_type: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (content_type, len(body), body)


def chat(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return json.dumps({"id": "c", "object": "chat.completion", "choices": choices, "usage": usage}).encode()


def chunked(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


async def well() -> Pieces:
    """An answer of two words."""
    yield whole(chat("Hello there."))


async def large() -> Pieces:
    """LARGE_BYTES, not streamed."""
    yield whole(chat("x" * LARGE_BYTES))


async def held() -> Pieces:
    """LARGE_BYTES without the last byte, which never comes."""
    yield whole(chat("x" * LARGE_BYTES))[:-1]
    await asyncio.Event().wait()


async def stuck() -> Pieces:
    """No answer, ever."""
    await asyncio.Event().wait()
    yield b""


async def endless() -> Pieces:
    """A stream without end."""
    yield STREAM_HEAD
    while True:
        yield chunked(EVENT % (b"word " * 20)) * 300


async def long() -> Pieces:
    """LONG_BYTES of text, streamed, then silence."""
    yield STREAM_HEAD
    for _ in range(LONG_BYTES // 1_000):
        yield chunked(EVENT % (b"word " * 200))
    await asyncio.Event().wait()


SHAPES = {each.__name__: each for each in (well, large, held, stuck, endless, long)}


class ShapedWorker:
    def __init__(self, models: tuple[str, ...]) -> None:
        self._models = json.dumps({"data": [{"id": model} for model in models]}).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await self._answer(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET "):
            path = head.split(b" ", 2)[1]
            answer = {b"/metrics": METRICS, b"/v1/models": self._models}.get(path, b"{}")
            writer.write(whole(answer, b"text/plain"))
            return
        (line,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(line.split(b":")[1]))
        async for piece in SHAPES[json.loads(body)["model"]]():
            writer.write(piece)
            await writer.drain()


async def main(models: tuple[str, ...]) -> None:
    server = await asyncio.start_server(ShapedWorker(models).serve, "127.0.0.1", 0, limit=READ_BYTES, backlog=1000)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(tuple(sys.argv[1:])))
