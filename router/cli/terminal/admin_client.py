"""Reads the admin port. Each failure becomes one line that says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from router.cli.terminal.answers import Snapshot
from router.config.serving import AdminConfig
from router.core.printable import printable
from router.runtime.bounded_body import read_body
from router.runtime.logs import redact

CONNECT_S, SILENT_S, ANSWER_S = 3.0, 10.0, 30.0
"""Time-outs: to connect; for a response head and for each whole snapshot; for a whole list."""
MAX_EVENT_BYTES = 8 << 20
"""A snapshot of 10,000 workers is smaller."""
MAX_ANSWER_BYTES = 64 << 20
"""The largest list of decisions that ``admin.decisions`` allows is smaller."""
MAX_ROWS = 100_000
"""As many rows as ``admin.decisions`` allows, and more than a fleet has workers. To show them takes a minute."""
_NOT_AN_ANSWER = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, KeyError, RecursionError)
"""A time-out is an OSError, a line that is too long an error of aiohttp's parser, JSON nested too deep a RecursionError."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (the client connects by loopback)


class AdminError(Exception):
    """One line for the operator. The text loses passwords and control characters."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(redact(text)))


class AdminClient:
    """A client of one admin port. ``url``: without a path. ``token``: empty if the port needs none."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def list(self, path: str, member: str, kind: Any) -> list[dict[str, Any]]:
        """The list under ``member`` of the answer, with each row decoded as ``kind``. Raises AdminError."""
        async with self._answer(path) as answer, asyncio.timeout(ANSWER_S):
            found: list[dict[str, Any]] = msgspec.json.decode(await _whole(answer), type=dict[str, list[kind]])[member]
            if len(found) > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS:,} {member}")
            return found

    async def snapshots(self) -> AsyncGenerator[dict[str, Any], None]:
        """The status page's snapshots, one a second, until the router closes the stream. Raises AdminError."""
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
                f"{self.url} is no router's admin port, or does not answer ({error or type(error).__name__}): check admin.host "
                "and admin.port, or give the URL with --admin-url"
            ) from None

    async def _refusal(self, answer: aiohttp.ClientResponse) -> str:
        if answer.status == 401:
            return f"{self.url} needs the router's token: set WARMROUTE_ADMIN__TOKEN to its admin.token"
        text = (await answer.content.read(200)).decode("utf-8", "replace").strip()
        return f"{self.url} answers {answer.status}: {text.partition(chr(10))[0]}"


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    """The body. Raises ValueError if it is too large."""
    body = await read_body(answer, MAX_ANSWER_BYTES)
    if body is None:
        raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
    return body


async def _next_data(content: aiohttp.StreamReader) -> bytes:
    """The data of the next event; empty at the end. Raises ValueError if a line is too long, and TimeoutError."""
    async with asyncio.timeout(SILENT_S):
        while line := await content.readline():
            if line.startswith(b"data: "):
                return line[6:]
    return b""


def admin_url(admin: AdminConfig) -> str:
    """The admin port's URL for a router on this machine with this configuration."""
    host = _EVERYWHERE.get(admin.host, admin.host)
    return f"http://[{host}]:{admin.port}" if ":" in host else f"http://{host}:{admin.port}"
