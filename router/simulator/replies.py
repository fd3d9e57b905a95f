"""How replies reach a connection: whole bodies and chunks written to its transport, past aiohttp's own writer.

Must never write a chunk of no bytes, which would end a reply.
"""

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter


class Sent(web.StreamResponse):
    """A reply that has been written already; tells aiohttp only whether the connection goes on."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        del request
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        del data


class ChunkedSink:
    """A streamed reply: its head now, and then one write for each batch of events."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport, head: bytes) -> None:
        self._transport = transport
        transport.write(head)

    def write(self, events: bytes, *, is_last: bool) -> None:
        if (events or is_last) and not self._transport.is_closing():
            chunk = b"%x\r\n%b\r\n" % (len(events), events) if events else b""
            self._transport.write(chunk + b"0\r\n\r\n" if is_last else chunk)

    def drop(self) -> None:
        self._transport.abort()

    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()
