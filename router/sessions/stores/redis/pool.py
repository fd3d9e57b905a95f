"""A bounded number of redis-py's connections to one server, and the calls that go over them.

A connection is used again only after all replies of a call were read. A call that fails, is cancelled or runs out of time
closes its connection, so no call reads the reply of another. Nothing is sent twice here: a command without a reply may have
been carried out.

It stands in for the pool of redis-py, which waits for the other side when it closes a connection: for half a minute where a
server with TLS hangs, which no deadline allows. Under Sentinels that pool also keeps its idle connections after a failure,
and asks a Sentinel for each new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from router.runtime.breaker import Breaker, BreakerState, Patience
from router.sessions.stores.redis.deadline import Deadline
from router.sessions.stores.redis.errors import Reason, RedisUnavailable, ends_connection, translate
from router.sessions.stores.redis.servers import Primary

Command = tuple[bytes | str | int, ...]
Reply = Any
"""An answer of Redis. An error reply is a ResponseError, returned and not raised."""

LARGE_CALL_BYTES = 64 << 10
"""A call of this size, or a reply that has come in part, may be slow where others are not. Its timeout does not count as a
failure of the server."""


@dataclass(slots=True)
class _Call:
    packed: bytes
    count: int
    """Number of commands."""
    is_arriving: bool = False
    """Part of a reply had come when the call was given up."""

    @property
    def is_large(self) -> bool:
        return self.is_arriving or len(self.packed) >= LARGE_CALL_BYTES


class Pool:
    """``clock``: monotonic. ``pending``: calls that wait for a connection or for their replies."""

    def __init__(self, server: Primary, max_connections: int, patience: Patience, clock: Callable[[], float]) -> None:
        self._server = server
        self._clock = clock
        self._breaker = Breaker(patience)
        self._room = asyncio.Semaphore(max_connections)
        self._idle: list[AbstractConnection] = []
        self._era = 0
        """Grows with each failure. Connections of an earlier era are not used again."""
        self.pending = 0

    def __repr__(self) -> str:
        return f"Pool({self._server!r}, {self.state.name}, idle={len(self._idle)}, pending={self.pending})"

    @property
    def state(self) -> BreakerState:
        return self._breaker.state(self._clock())

    async def exchange(self, _key: bytes, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Sends the commands in one write on one connection, and reads their replies. ``deadline``: by the loop's clock. The
        key does not matter: this server has them all. Raises RedisUnavailable; the commands may have been carried out or not.
        """
        if not self._breaker.admits(self._clock()):
            raise RedisUnavailable(Reason.PAUSED)
        call = _Call(_packed(commands), len(commands))
        self.pending += 1
        try:
            async with Deadline(deadline), self._room:
                replies = await self._exchange(call)
        except asyncio.CancelledError:
            self._breaker.abandoned()
            raise
        except TimeoutError as error:
            if call.is_large:
                self._breaker.abandoned()
            else:
                self._breaker.failed(self._clock())
                await self.forget()
            raise translate(error) from None
        except (RedisError, RedisUnavailable, OSError) as error:
            self._breaker.failed(self._clock())
            await self.forget()
            raise translate(error) from None
        finally:
            self.pending -= 1
        self._breaker.succeeded()
        return replies

    async def _exchange(self, call: _Call) -> list[Reply]:
        era = self._era
        is_clean = False
        connection: AbstractConnection | None = None
        try:
            connection = await self._take()
            await connection.send_packed_command(call.packed)
            replies = [await _read(connection) for _ in range(call.count)]
            is_clean = not any(map(ends_connection, replies))
            if not is_clean:
                await self.forget()
            return replies
        except asyncio.CancelledError:
            if connection is not None and connection.is_connected:
                call.is_arriving = await connection.can_read()
            raise
        finally:
            if connection is None:
                pass
            elif is_clean and era == self._era:
                self._idle.append(connection)
            else:
                await connection.disconnect(nowait=True)

    async def _take(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            # Data or the end of the stream before a command was sent: the connection is of no use.
            if not await connection.can_read():
                return connection
            await connection.disconnect(nowait=True)
        return await self._server.connect()

    async def forget(self) -> None:
        """The server may have failed or been replaced: no connection is used again."""
        self._era += 1
        self._server.forget()
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def close(self) -> None:
        self._era += 1
        while self._idle:
            await self._idle.pop().disconnect()
        await self._server.close()


def _packed(commands: Sequence[Command]) -> bytes:
    # The stub takes a tuple of one element only.
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]


async def _read(connection: AbstractConnection) -> Reply:
    try:
        # The caller looks at the connection before it closes it.
        return await connection.read_response(disconnect_on_error=False)
    except InvalidResponse:
        raise
    except ResponseError as error:
        return error
