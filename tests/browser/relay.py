"""A way to a port that can fall silent, as networks do: connections stay, and nothing comes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(slots=True)
class Relay:
    host: str
    port: int
    url: str = ""
    is_open: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self) -> None:
        self.is_open.clear()

    async def go_on(self) -> None:
        self.is_open.set()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await asyncio.open_connection(self.host, self.port)
            await asyncio.gather(self._pipe(reader, back), self._pipe(there, writer), return_exceptions=True)
        writer.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self.is_open.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def relaying(host: str, port: int) -> AsyncIterator[Relay]:
    relay = Relay(host, port)
    relay.is_open.set()
    async with await asyncio.start_server(relay.take, "127.0.0.1", 0) as server:
        relay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield relay
        relay.is_open.set()
