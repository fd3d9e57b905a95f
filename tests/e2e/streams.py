"""Bodies and streams that the tests send through a router, and scripts of workers that send them."""

from __future__ import annotations

import asyncio
from typing import Any

from router.wire.framing import LAST_CHUNK, frame
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, Script, answer

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
STREAMED: dict[str, Any] = {**CHAT, "stream": True}
MESSAGES: dict[str, Any] = {**CHAT, "max_tokens": 5}

TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = TEXT + TEXT + LAST + DONE
"""What a client sees that asked for no usage."""


async def stream(_asked: Asked, peer: Peer) -> None:
    await peer.send(STREAM_HEAD, *map(frame, (TEXT, TEXT, LAST, USAGE, DONE)), LAST_CHUNK)


async def hang(_asked: Asked, peer: Peer) -> None:
    await peer.gone()


async def drop(_asked: Asked, peer: Peer) -> None:
    peer.drop()


def answering(body: bytes = b"{}", status: int = 200) -> Script:
    async def script(_asked: Asked, peer: Peer) -> None:
        await peer.send(answer(body, status))

    return script


def sending(*pieces: bytes) -> Script:
    """These bytes, and then nothing until the router leaves."""

    async def script(_asked: Asked, peer: Peer) -> None:
        await peer.send(*pieces)
        await peer.gone()

    return script


async def stream_without_end(_asked: Asked, peer: Peer) -> None:
    """As fast as the router takes it."""
    gone = asyncio.ensure_future(peer.gone())
    await peer.send(STREAM_HEAD)
    burst = frame(TEXT) * 500
    while not gone.done():
        await peer.send(burst)
        await asyncio.sleep(0)
