"""Asks the admin port. Whatever goes wrong is said in a line that tells what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from router.cli.terminal.answers import Snapshot
from router.config.schema import AdminConfig
from router.core.printable import printable
from router.runtime.bounded_body import read_body
from router.runtime.logs import redact

CONNECT_S, SILENT_S, ANSWER_S = 3.0, 10.0, 30.0
"""For a connection; for a head, and for each snapshot, however it drips; for a whole list."""
MAX_EVENT_BYTES = 8 << 20
"""Of 10,000 workers and more."""
MAX_ANSWER_BYTES = 64 << 20
"""Of as many decisions as ``admin.decisions`` may be."""
MAX_ROWS = 100_000
"""Of a list: likewise, and far more than a fleet has workers. To show so many takes a minute."""
_NOT_AN_ANSWER = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, KeyError, RecursionError)
"""A time-out is an OSError; aiohttp tells of lines that are too long by an error of its parser's, and msgspec of what is nested
too deep by a RecursionError."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (a router that listens there is asked on loopback)


class AdminError(Exception):
    """In a line, without passwords and without what a terminal would obey."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(redact(text)))


class AdminClient:
    """``url``: of the admin port, without a path."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def list(self, path: str, member: str, kind: Any) -> list[dict[str, Any]]:
        """What is listed under ``member`` of the answer, each as ``kind`` has it. Raises AdminError."""
        async with self._answer(path) as answer, asyncio.timeout(ANSWER_S):
            found: list[dict[str, Any]] = msgspec.json.decode(await _whole(answer), type=dict[str, list[kind]])[member]
            if len(found) > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS:,} {member}")
            return found

    async def snapshots(self) -> AsyncGenerator[dict[str, Any], None]:
        """What the status page shows, once a second, for as long as the router goes on. Raises AdminError."""
        async with self._answer("/events") as answer:
            while data := await _next_data(answer.content):
                shown: Any = msgspec.json.decode(data, type=Snapshot)
                yield shown

    @asynccontextmanager
    async def _answer(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
        try:
            async with aiohttp.ClientSession(
                headers=self._headers, timeout=patience, read_bufsize=MAX_EVENT_BYTES, auto_decompress=False
            ) as http:
                async with asyncio.timeout(SILENT_S):
                    answer = await http.get(self.url + path, allow_redirects=False)
                async with answer:
                    if answer.status != 200:
                        raise AdminError(await self._refusal(answer))
                    yield answer
        except _NOT_AN_ANSWER as error:
            raise AdminError(
                f"{self.url} is no router's admin port, or not now ({error or type(error).__name__}): see admin.host and "
                "admin.port, or name it with --admin-url"
            ) from None

    async def _refusal(self, answer: aiohttp.ClientResponse) -> str:
        if answer.status == 401:
            return f"{self.url} asks for a token that this is not: set WARMROUTE_ADMIN__TOKEN to what the router has"
        told = (await answer.content.read(200)).decode("utf-8", "replace").strip()
        return f"{self.url} answers {answer.status}: {told.partition(chr(10))[0]}"


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    """Raises ValueError."""
    body = await read_body(answer, MAX_ANSWER_BYTES)
    if body is None:
        raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
    return body


async def _next_data(content: aiohttp.StreamReader) -> bytes:
    """Of the next event; empty at the end. Raises ValueError where it is too large, TimeoutError."""
    async with asyncio.timeout(SILENT_S):
        while line := await content.readline():
            if line.startswith(b"data: "):
                return line[6:]
    return b""


def admin_url(admin: AdminConfig) -> str:
    """Of a router on this machine that has this configuration."""
    host = _EVERYWHERE.get(admin.host, admin.host)
    return f"http://[{host}]:{admin.port}" if ":" in host else f"http://{host}:{admin.port}"
