"""Writes replies to a connection's transport, past aiohttp's writer. Must never write an empty chunk: it ends a reply."""

import asyncio
import socket
import struct

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

GARBAGE = b"\x00\xff\x16 this is no chunk \xfe\r\n" * 4


class Sent(web.StreamResponse):
    """A reply that is already written. It tells aiohttp only whether to keep the connection."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        del request
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        del data


def reset(transport: asyncio.Transport) -> None:
    """Close a connection with RST, by SO_LINGER with a time of 0 (socket(7))."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class ChunkedSink:
    """A streamed reply: the head at once, then one write for each batch of events. It can also break in several ways."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport, head: bytes) -> None:
        self._transport = transport
        transport.write(head)

    def write(self, events: bytes, *, is_last: bool) -> None:
        if (events or is_last) and not self._transport.is_closing():
            chunk = b"%x\r\n%b\r\n" % (len(events), events) if events else b""
            self._transport.write(chunk + b"0\r\n\r\n" if is_last else chunk)

    def drop(self) -> None:
        """Close without the last chunk, after all written bytes are sent."""
        self._transport.close()

    def reset(self) -> None:
        reset(self._transport)

    def garble(self) -> None:
        """Write bytes that are not a chunk."""
        if not self._transport.is_closing():
            self._transport.write(GARBAGE)

    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()
