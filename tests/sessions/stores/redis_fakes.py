"""Between a store and its server: a proxy that delays, and a server that says what it is told to say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

HELLO = b"*6\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"


@asynccontextmanager
async def delaying_proxy(port: int, max_turns: int, seed: int) -> AsyncIterator[int]:
    """Yields its own port. What passes it waits for up to so many turns of the loop, drawn by ``seed``, and is cut anywhere."""
    draw = random.Random(seed)
    handlers: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while part := await reader.read(draw.choice((7, 64, 65536))):
                for _ in range(draw.randint(0, max_turns)):
                    await asyncio.sleep(0)
                writer.write(part)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        handler = asyncio.current_task()
        assert handler is not None
        handlers[handler] = (writer, there_writer)
        await asyncio.gather(pass_on(reader, there_writer), pass_on(there_reader, writer))
        del handlers[handler]

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for writer in [writer for both in handlers.values() for writer in both]:
            writer.close()
        await asyncio.gather(*handlers)


class ScriptedRedis:
    """Answers commands by their name with bytes as they are."""

    def __init__(self, replies: Mapping[bytes, bytes]) -> None:
        self.replies: dict[bytes, bytes] = {b"HELLO": HELLO, b"CLIENT": b"+OK\r\n", **replies}
        self.asked: list[bytes] = []
        self.connections = 0
        self._handlers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Yields its URL."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for writer in self._handlers.values():
                writer.close()
            await asyncio.gather(*self._handlers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers[handler] = writer
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readline():
                words = [await self._word(reader) for _ in range(int(head[1:]))]
                self.asked.append(words[0])
                reply = self.replies[words[0]]
                writer.write(reply)
        writer.close()

    async def _word(self, reader: asyncio.StreamReader) -> bytes:
        length = int((await reader.readline())[1:])
        return (await reader.readexactly(length + 2))[:length]
