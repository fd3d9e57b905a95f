"""Asks the admin port. Whatever goes wrong is said in a line that tells what to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from router.config import AdminConfig
from router.logs import redact
from router.terminal.screen import SNAPSHOT, printable

CONNECT_S, SILENT_S = 3.0, 10.0
MAX_EVENT_BYTES = 8 << 20
"""Of 10,000 workers and more."""
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

    async def list(self, path: str, member: str) -> list[dict[str, Any]]:
        """What is listed under ``member`` of the answer. Raises AdminError."""
        async with self._answer(path) as answer:
            return msgspec.json.decode(await answer.read(), type=dict[str, list[dict[str, Any]]])[member]

    async def snapshots(self) -> AsyncGenerator[dict[str, Any], None]:
        """What the status page shows, once a second, for as long as the router goes on. Raises AdminError."""
        async with self._answer("/events") as answer:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    shown = msgspec.json.decode(line[6:], type=dict[str, Any])
                    if not shown.keys() >= SNAPSHOT:
                        raise ValueError("another release's, or something else's figures")
                    yield shown

    @asynccontextmanager
    async def _answer(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=patience, read_bufsize=MAX_EVENT_BYTES) as http,
                http.get(self.url + path, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise AdminError(await self._refusal(answer))
                yield answer
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            raise AdminError(
                f"{self.url} is no router's admin port, or not now ({error or type(error).__name__}): see admin.host and "
                "admin.port, or name it with --admin-url"
            ) from None

    async def _refusal(self, answer: aiohttp.ClientResponse) -> str:
        if answer.status == 401:
            return f"{self.url} asks for a token that this is not: set WARMROUTE_ADMIN__TOKEN to what the router has"
        told = (await answer.content.read(200)).decode("utf-8", "replace").strip()
        return f"{self.url} answers {answer.status}: {printable(told.partition(chr(10))[0])}"


def admin_url(admin: AdminConfig) -> str:
    """Of a router on this machine that has this configuration."""
    host = _EVERYWHERE.get(admin.host, admin.host)
    return f"http://[{host}]:{admin.port}" if ":" in host else f"http://{host}:{admin.port}"
