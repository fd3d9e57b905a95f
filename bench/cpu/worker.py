"""A worker that costs next to nothing: it speaks vLLM's HTTP, and computes nothing.

``python -m bench.cpu.worker --port 9301``. It decides when bytes go out, never what a router is worth: its own CPU
is not counted. Each stream sends one event every ``--gap-ms``, at its own phase; libuv's clock ticks once a
millisecond, so streams that are due within the same one are written one after the other, as an engine's step would.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable
from typing import cast

import uvloop

from bench.cpu import replies

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
STREAM = re.compile(rb'"stream": ?true')
INCLUDE_USAGE = re.compile(rb'"include_usage": ?true')
RETURN_IDS = re.compile(rb'"return_token_ids": ?true')


class WorkerConnection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gap_s: float) -> None:
        self._loop = loop
        self._gap_s = gap_s
        self._transport: asyncio.WriteTransport | None = None
        self._held = bytearray()
        self._body_start = 0
        self._needed = 0
        self._remaining_events = 0
        self._end = b""
        self._tells_ids = False
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one by its methods, not by its class.
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._held += data
        while self._held:
            if not self._needed and not self._read_head():
                return
            if len(self._held) < self._needed:
                return
            request = bytes(self._held[: self._needed])
            del self._held[: self._needed]
            self._needed = 0
            self._reply(request)

    def _read_head(self) -> bool:
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._held[: end + 2])
        length = CONTENT_LENGTH.search(head)
        self._body_start = end + 4
        self._needed = self._body_start + (int(length[1]) if length else 0)
        return True

    def _reply(self, request: bytes) -> None:
        words = request[: request.index(b"\r\n")].split(b" ")
        if len(words) != 3:  # a router that tries HTTP/2 first
            self._close()
            return
        path = words[1].partition(b"?")[0]
        if not path.endswith(b"/completions"):
            self._write(replies.PAGES.get(path, replies.NOT_FOUND))
        elif STREAM.search(request, self._body_start):
            self._begin_stream(request)
        else:
            self._write(replies.COMPLETION)

    def _begin_stream(self, request: bytes) -> None:
        wanted = MAX_TOKENS.search(request, self._body_start)
        self._remaining_events = int(wanted[1]) if wanted else 16
        asked = INCLUDE_USAGE.search(request, self._body_start)
        self._end = replies.END_WITH_USAGE if asked else replies.END
        self._tells_ids = RETURN_IDS.search(request, self._body_start) is not None
        self._write(replies.STREAM_HEAD)
        self._due = self._loop.time() + self._gap_s
        self._loop.call_at(self._due, self._first_event)

    def _first_event(self) -> None:
        self._write(replies.FIRST_EVENT_WITH_IDS if self._tells_ids else replies.FIRST_EVENT)
        self._schedule(self._next_event)

    def _next_event(self) -> None:
        if self._transport is None:
            return
        if self._remaining_events == 0:
            self._write(self._end)
            return
        self._remaining_events -= 1
        self._write(replies.CONTENT_EVENT_WITH_IDS if self._tells_ids else replies.CONTENT_EVENT)
        self._schedule(self._next_event)

    def _schedule(self, step: Callable[[], None]) -> None:
        self._due += self._gap_s
        self._loop.call_at(self._due, step)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(port: int, gap_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: WorkerConnection(loop, gap_s), "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.gap_ms / 1000))


if __name__ == "__main__":
    main()
