"""A worker on a real socket that answers by a script, byte for byte, and remembers what reached it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

JSON_HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
METRICS = b'vllm:num_requests_running{engine="0"} 0.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'


def answer(body: bytes = b"{}", status: int = 200) -> bytes:
    return JSON_HEAD % (status, len(body)) + body


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int
    """Number of the connection that it came on, from 0."""

    @property
    def path(self) -> str:
        return self.line.split()[1]


class Peer:
    """The router's end of one connection, as the worker meets it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._writer.write(piece)
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    async def gone(self) -> None:
        """Return when the router has closed its end."""
        with contextlib.suppress(ConnectionError):
            await self._reader.read()

    def drop(self) -> None:
        """End the connection as the kernel does for a process that was killed."""
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


Script = Callable[[Asked, Peer], Awaitable[None]]


async def answer_empty(_asked: Asked, peer: Peer) -> None:
    await peer.send(answer())


@dataclass
class ScriptedWorker:
    """``script`` answers inference; probes are answered as a healthy worker does, unless ``is_ill``."""

    script: Script = answer_empty
    models: tuple[str, ...] = ("m",)
    is_ill: bool = False
    probed: dict[str, bytes] = field(default_factory=dict)
    """Bodies by path, of a worker that answers probes otherwise."""
    statuses: dict[str, int] = field(default_factory=dict)
    """By path, of probes that it refuses."""
    url: str = ""
    probes: Counter[str] = field(default_factory=Counter)
    """By path."""
    asked: list[Asked] = field(default_factory=list)
    """Without the probes."""
    connections: int = 0
    close: Callable[[], object] = lambda: None
    """Listen no more; connections stay."""
    ended: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """Numbers of the connections that have ended, in their order."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        peer = Peer(reader, writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.split("\r\n")[:-2]
                headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(line, headers, body, number)
                if line.startswith("GET "):
                    self.probes[asked.path] += 1
                    await peer.send(self._probed(asked.path))
                else:
                    self.asked.append(asked)
                    await self.script(asked, peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.ended.put_nowait(number)

    def _probed(self, path: str) -> bytes:
        if path in self.statuses:
            return answer(b"\x1b[31m its own words", self.statuses[path])
        if path in self.probed:
            return answer(self.probed[path])
        if path == "/health":
            return b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % (503 if self.is_ill else 200)
        if path == "/v1/models":
            return answer(b'{"data":[%b]}' % b",".join(b'{"id":"%b"}' % model.encode() for model in self.models))
        return answer(METRICS)


@asynccontextmanager
async def scripted(
    script: Script = answer_empty, *, models: tuple[str, ...] = ("m",), tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedWorker]:
    """A worker that listens on a free port inside the block."""
    worker = ScriptedWorker(script, models)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(worker.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    worker.close = server.close
    worker.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield worker
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unused_url() -> str:
    """The address of a port at which nobody listens any more."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}"
