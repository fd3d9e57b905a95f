"""A way to a worker that can be cut: a TCP proxy that ends a stream after so many of its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.vllm.lab import VllmWorker


class Cutter:
    """``cut_after`` events one stream is cut, whichever passes first; then it is None again."""

    def __init__(self, worker: VllmWorker) -> None:
        self._worker = worker
        self.url = ""
        self.cut_after: int | None = None
        self.cuts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._worker.port)
        except OSError:
            writer.transport.abort()
            return
        there = asyncio.create_task(_pipe(reader, back_writer))
        try:
            await self._pass_back(back_reader, writer)
        finally:
            there.cancel()
            back_writer.transport.abort()
            writer.close()

    async def _pass_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        events = 0
        while not writer.is_closing() and (data := await reader.read(65536)):
            at = -1
            while self.cut_after is not None and (at := data.find(b"data:", at + 1)) >= 0:
                events += 1
                if events > self.cut_after:
                    self.cut_after = None
                    self.cuts += 1
                    writer.write(data[:at])
                    await writer.drain()
                    writer.close()  # what was sent arrives; abort might drop it
                    return
            writer.write(data)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def cutting(worker: VllmWorker) -> AsyncIterator[Cutter]:
    cutter = Cutter(worker)
    server = await asyncio.start_server(cutter.accept, "127.0.0.1", 0, limit=1 << 22)
    cutter.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield cutter
    finally:
        server.close()
        await cutter.close()
