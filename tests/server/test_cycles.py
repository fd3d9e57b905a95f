"""No request, and no connection however it ends, leaves a cycle: the collector seldom looks at what is old, so whatever a cycle
holds stays in memory for hours."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from router.wire.framing import frame
from tests.e2e.routed import Broken, RawClient, connected, routed, until
from tests.e2e.streams import CHAT, STREAMED, TEXT, answering, drop, hang, stream, stream_without_end
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, Script, scripted

CHAT_PATH, TURN_PATH = "/v1/chat/completions", "/v1/sessions/s/chat/completions"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\n"
FIELD = b"a: " + b"b" * 8_000 + b"\r\n"
TIMES = 3


def post(body: Any, path: str = CHAT_PATH) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: r\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def die_amid(_asked: Asked, peer: Peer) -> None:
    await peer.send(STREAM_HEAD, frame(TEXT))
    peer.drop()


async def babble(_asked: Asked, peer: Peer) -> None:
    await peer.send(b"no HTTP\r\n\r\n")


def busy_every_other_time() -> Script:
    asked = itertools.count()

    async def script(given: Asked, peer: Peer) -> None:
        await (answering(status=429) if next(asked) % 2 == 0 else answering())(given, peer)

    return script


def is_of_the_router(thing: object, ports: set[int]) -> bool:
    """The test's own ends of connections make cycles of their own."""
    if isinstance(thing, asyncio.BaseTransport):
        ends = [thing.get_extra_info(name) for name in ("sockname", "peername")]
        return bool(ports & {end[1] for end in ends if end}) and getattr(thing, "_read_ready_cb", None) is not None
    if isinstance(thing, FrameType):
        return not {"tests", "asyncio"} & set(Path(thing.f_code.co_filename).parts)
    return type(thing).__module__.startswith(("router.", "aiohttp."))


@contextlib.contextmanager
def collected() -> Iterator[list[object]]:
    """What only the collector would find of what the block leaves."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def read_all(client: RawClient) -> None:
    with contextlib.suppress(Broken, asyncio.IncompleteReadError, ConnectionError):
        await client.answer()


@pytest.mark.parametrize(
    ("sent", "is_left"),
    [
        (b"GET /v1/models HTTP/1.1\r\nHost: r\r\n\r\n", False),
        (b"GET /missing HTTP/1.1\r\nHost: r\r\n\r\n", False),
        (HEAD[:5], True),
        (HEAD[:-2], True),
        (post(CHAT)[:-5], True),
        (HEAD + FIELD * 10, False),
        (HEAD + b"a: b\r\n" * 500 + b"\r\n", False),
        (HEAD + b"a: " + b"b" * 15_000 + b"\r\n\r\n", False),
        (b"NO HTTP\r\n\r\n", False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n", False),
        (HEAD + b"Content-Length: 5000000000\r\n\r\n", False),
        (post(b"no JSON"), False),
        (post({"model": "unknown", "messages": []}), False),
        (post(CHAT | {"model": "unknown"}), False),
        (post(CHAT), False),
    ],
    ids=lambda value: value[:40].decode() if isinstance(value, bytes) else "",
)
async def test_a_connection_leaves_no_cycle(sent: bytes, is_left: bool) -> None:
    await check(answering(), sent, is_left)


@pytest.mark.parametrize(
    ("script", "body", "is_left"),
    [
        (answering(), CHAT, False),
        (answering(b'{"error":{}}', 400), CHAT, False),
        (answering(b'{"error":{"param":"model"}}', 404), CHAT, False),
        (busy_every_other_time(), CHAT, False),
        (answering(b"", 500), CHAT, False),
        (stream, STREAMED, False),
        (hang, STREAMED, True),
        (stream_without_end, STREAMED, True),
        (drop, STREAMED, False),
        (die_amid, STREAMED, False),
        (babble, STREAMED, False),
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, TURN_PATH, "/v1/responses"])
async def test_a_request_leaves_no_cycle_however_its_worker_answers(
    script: Script, body: dict[str, Any], is_left: bool, path: str
) -> None:
    if path == "/v1/responses":
        body = {"model": "m", "input": "hello", "stream": "stream" in body}
    await check(script, post(body, path), is_left)


async def check(script: Script, sent: bytes, is_left: bool) -> None:
    async with scripted(script) as worker, routed(worker.url) as router:
        ports = {int(url.rpartition(":")[2]) for url in (router.url, worker.url)}

        async def once() -> None:
            async with connected(router) as client:
                await client.send(sent)
                if is_left:
                    await until(lambda: router.open_connections() == 1)
                    await until(lambda: bool(worker.asked) == sent.endswith(b"}"))
                else:
                    await read_all(client)
                client.leave(reset=is_left)
            await until(lambda: router.open_connections() == 0 and not router.data.live)

        await once()  # what is made once, is made
        with collected() as found:
            for _ in range(TIMES):
                await once()
        assert not [thing for thing in found if is_of_the_router(thing, ports)]
