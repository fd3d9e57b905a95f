"""A router that serves in this process, and a client that speaks to it byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from router.app.serve import Running, running
from router.config.loading import load_config
from router.wire.framing import ChunkedReader

QUICK = {
    "server.port": 0,
    "admin.port": 0,
    "server.insecure_no_auth": True,
    "server.drain_s": 2.0,
    "probes.interval_s": 0.1,
    "probes.ejection_s": 0.2,
    "probes.max_ejection_s": 0.4,
    "load.poll_interval_s": 0.1,
    "fleet.discovery_interval_s": 0.1,
    "admission.no_worker_wait_s": 0.0,
    "sessions.store": "memory://",
}
"""Times of a fleet that is small and near. Where nobody is up the answer is 503 at once."""


CONSTANTS = {
    "probes.ill_interval_s": "router.upstream.health_check.ILL_INTERVAL_S",
    "probes.models_interval_s": "router.upstream.health_check.MODELS_INTERVAL_S",
    "sessions.max_waiting_releases": "router.sessions.release.MAX_WAITING",
    "context.max_waiting": "router.sessions.compactor.MAX_WAITING",
    "limits.max_header_bytes": "router.server.client_server.MAX_FIELD_BYTES",
    "limits.max_headers": "router.server.client_server.MAX_FIELDS",
    "server.tls_reload_s": "router.server.certificate.RELOAD_S",
    "tracing.flush_s": "router.tracing.build.FLUSH_S",
    "tracing.interval_s": "router.tracing.otlp.INTERVAL_S",
    "tracing.max_queue": "router.tracing.otlp.MAX_QUEUE",
    "tracing.timeout_s": "router.tracing.otlp.EXPORT_S",
    "tokens.max_exact_bytes": "router.sessions.tokens.counts.MAX_EXACT_BYTES",
    "tokens.max_known_counts": "router.sessions.tokens.build.MAX_KNOWN",
    "tokens.worker_timeout_s": "router.sessions.tokens.worker.TIMEOUT_S",
}
"""What is no setting, and has another value while a test's router runs; by a name as if it were one."""


QUICK_CONSTANTS = {"probes.ill_interval_s": 0.05, "probes.models_interval_s": 0.05}


@asynccontextmanager
async def routed(*workers: str, **settings: Any) -> AsyncIterator[Running]:
    """``a__b=value`` sets ``a.b``. Behind the block nothing is under way any more, or the test fails."""
    timeout_s = settings.pop("timeout_s", 25.0)
    named = {key.replace("__", "."): value for key, value in settings.items()}
    flags = {**QUICK, **QUICK_CONSTANTS, "fleet.workers": list(workers), **named}
    async with contextlib.AsyncExitStack() as constants:
        for name in flags.keys() & CONSTANTS.keys():
            constants.enter_context(patch(CONSTANTS[name], flags.pop(name)))
        await constants.enter_async_context(asyncio.timeout(timeout_s))
        router = await constants.enter_async_context(running(load_config(None, {}, flags)))
        yield router
        await until(lambda: is_quiet(router))


def is_quiet(router: Running) -> bool:
    """No lease is left, and no request."""
    return not any(router.fleet.figures.in_flight) and not router.data.live


async def until(is_so: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for what another task or process is about to do."""
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found


class Broken(Exception):
    """The connection ended within an answer. ``body`` is what of it came."""

    def __init__(self, body: bytes) -> None:
        super().__init__(f"broken behind {body[-100:]!r}")
        self.body = body


class RawClient:
    """One connection. Reads no faster than it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def post(self, path: str, body: Any, *lines: str, version: str = "1.1") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"POST {path} HTTP/{version}", "Host: router", f"Content-Length: {len(data)}", *lines, "", ""]
        await self.send("\r\n".join(head).encode("latin-1") + data)

    async def answer(self, method: str = "POST") -> Answer:
        """The next answer, whole. Raises Broken."""
        status, headers = await self.head()
        return Answer(status, headers, await self._body(method, status, headers))

    async def head(self) -> tuple[int, dict[str, str]]:
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError as error:
            raise Broken(error.partial) from None
        line, *lines = head.split("\r\n")[:-2]
        return int(line.split()[1]), {
            name.lower(): value for name, _, value in (each.partition(": ") for each in lines)
        }

    async def chunk(self) -> bytes:
        """The payload of the next chunk. Raises Broken."""
        try:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]
        except asyncio.IncompleteReadError as error:
            raise Broken(error.partial) from None

    async def read_on(self) -> None:
        """To the end of a chunked body. Raises Broken."""
        while await self.chunk():
            pass

    async def _body(self, method: str, status: int, headers: Mapping[str, str]) -> bytes:
        if method == "HEAD" or status in (100, 204):
            return b""
        if "content-length" in headers:
            try:
                return await self.reader.readexactly(int(headers["content-length"]))
            except asyncio.IncompleteReadError as error:
                raise Broken(error.partial) from None
        if headers.get("transfer-encoding") != "chunked":
            return await self.reader.read()
        chunks, body = ChunkedReader(), b""
        while not chunks.finished:
            data = await self.reader.read(1) if chunks.at_boundary else await self.reader.read(1 << 16)
            if not data:
                raise Broken(body)
            payload, bad = chunks.feed(data)
            assert bad is None
            body += payload
        return body

    async def is_closed(self) -> bool:
        """True when the router has closed, and sent nothing before that."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    def leave(self, *, reset: bool = False) -> None:
        if reset:
            self.writer.transport.abort()
        else:
            self.writer.close()


@asynccontextmanager
async def connected(
    router: Running, tls: ssl.SSLContext | None = None, receive_bytes: int | None = None
) -> AsyncIterator[RawClient]:
    """``receive_bytes``: what the kernel, and the reader's buffer, may take beyond what is read."""
    url = urlsplit(router.url)
    own = socket.socket()
    if receive_bytes is not None:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, (url.hostname, url.port))
    name = url.hostname if tls else None
    reader, writer = await asyncio.open_connection(
        sock=own, ssl=tls, server_hostname=name, limit=receive_bytes or 1 << 20
    )
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


async def post(router: Running, path: str, body: Any, *lines: str) -> Answer:
    async with connected(router) as client:
        await client.post(path, body, *lines)
        return await client.answer()


async def get(router: Running, path: str, *lines: str, method: str = "GET") -> Answer:
    async with connected(router) as client:
        await client.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: router", *lines, "", ""]).encode("latin-1"))
        return await client.answer(method)


async def get_admin(router: Running, path: str, *lines: str) -> Answer:
    url = urlsplit(router.admin_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    client = RawClient(reader, writer)
    await client.send("\r\n".join([f"GET {path} HTTP/1.1", f"Host: {url.netloc}", *lines, "", ""]).encode("latin-1"))
    answer = await client.answer()
    client.leave()
    return answer
