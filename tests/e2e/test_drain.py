"""The command in a process of its own, and how it stops."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import cast
from urllib.parse import urlsplit

import pytest

from router.app.serve import Running
from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.routed import Answer, Broken, RawClient, connected, post
from tests.e2e.streams import CHAT, DONE, LAST, STREAMED, TEXT, answering
from tests.server.keys import ACME, SALT_SECRET, TWO_TENANTS, bearer, rewrite
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, scripted

PATH = "/v1/chat/completions"


@dataclass
class Served:
    process: asyncio.subprocess.Process
    router: Running
    """Its URL, and nothing else: the rest of it is in the other process."""

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def served(
    worker: str,
    *flags: str,
    leave_s: float = 0.0,
    drain_s: float = 20.0,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Served]:
    """``settings``: of the environment, without the prefix; with any, they say who is let in."""
    ports = ["--port", "0", "--admin-port", "0", *([] if settings else ["--insecure-no-auth"])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "serve", *ports, "--worker", worker, *flags),
        env={
            "WARMROUTE_SERVER__LEAVE_S": str(leave_s),
            "WARMROUTE_SERVER__DRAIN_S": str(drain_s),
            "WARMROUTE_SESSIONS__STORE": "memory://",
            "PATH": "",
            **{f"WARMROUTE_{name}": value for name, value in settings.items()},
        },
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(20):
            yield Served(process, cast(Running, SimpleNamespace(url=await url_of(process))))
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def url_of(process: asyncio.subprocess.Process) -> str:
    """The router says on standard error where it serves."""
    assert process.stderr is not None
    async for line in process.stderr:
        told = json.loads(line)
        if told["message"] == "serving":
            return str(told["url"])
    raise AssertionError("the router did not start")


async def asked_for(command: Served, path: bytes) -> Answer:
    """On a connection of its own: GET, or for a route a POST."""
    async with connected(command.router) as client:
        if path == PATH.encode():
            await client.post(PATH, CHAT)
        else:
            await client.send(b"GET %b HTTP/1.1\r\nHost: r\r\n\r\n" % path)
        return await client.answer()


def accepts(command: Served) -> bool:
    address = urlsplit(command.router.url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


async def begin_stream(client: RawClient) -> None:
    await client.post(PATH, STREAMED)
    await client.head()
    assert await client.chunk() == TEXT


async def test_a_router_that_leaves_says_so_and_serves_on_and_then_lets_live_streams_end() -> None:
    async def stream_in_steps(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(TEXT))
        await refused.wait()
        await peer.send(frame(LAST + DONE) + LAST_CHUNK)

    refused = asyncio.Event()
    async with scripted(stream_in_steps) as worker, served(worker.url, leave_s=300.0) as command:
        async with connected(command.router) as client, connected(command.router) as waiting:
            await begin_stream(client)
            command.stop()
            while (await asked_for(command, b"/ready")).status == 200:
                await asyncio.sleep(0)
            worker.script = answering()
            answer = await asked_for(command, PATH.encode())
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            command.stop()  # whoever cannot wait asks twice
            while accepts(command):
                await asyncio.sleep(0)
            await waiting.post(PATH, CHAT)
            late = await waiting.answer()
            assert (late.status, late.error["code"]) == (503, "draining")
            assert late.headers["retry-after"]
            refused.set()
            assert await client.chunk() == LAST + DONE
            assert await client.chunk() == b""
        assert await command.process.wait() == 0
        assert len(worker.asked) == 2


async def test_what_outlasts_the_drain_is_told_so_and_never_ends_cleanly() -> None:
    async def never_end(asked: Asked, peer: Peer) -> None:
        if b"stream" in asked.body:
            await peer.send(STREAM_HEAD, frame(TEXT))
        else:
            silent.set()
        await peer.gone()

    silent = asyncio.Event()
    async with (
        scripted(never_end) as worker,
        served(worker.url, drain_s=0.1) as command,
        connected(command.router) as client,
        connected(command.router) as other,
    ):
        await begin_stream(client)
        await other.post(PATH, CHAT)
        await silent.wait()
        command.stop()
        assert b'"code":"draining"' in await client.chunk()
        with pytest.raises(Broken):
            await client.chunk()
        late = await other.answer()
        assert (late.status, late.error["code"]) == (503, "draining")
        assert await command.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_router_stops_at_once_though_clients_are_connected(number: signal.Signals) -> None:
    async with scripted(answering()) as worker, served(worker.url) as command, connected(command.router) as client:
        await client.post(PATH, CHAT)
        assert (await client.answer()).status == 200
        command.process.send_signal(number)
        assert await command.process.wait() == 0
        assert await client.is_closed()


async def test_a_hangup_makes_it_look_at_its_keys_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    rewrite(file, TWO_TENANTS.encode())
    settings = {"AUTH__KEYS_FILE": str(file), "AUTH__SALT_SECRET": SALT_SECRET, "AUTH__RELOAD_S": "3600"}
    async with scripted(answering()) as worker, served(worker.url, settings=settings) as running:
        assert (await post(running.router, PATH, CHAT, bearer(ACME))).status == 200
        rewrite(file, b"")
        running.process.send_signal(signal.SIGHUP)
        while (await post(running.router, PATH, CHAT, bearer(ACME))).status != 401:
            await asyncio.sleep(0.01)
        running.stop()
