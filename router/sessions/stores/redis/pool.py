"""Connections to one server, so many at most; and what is said over them.

A connection is used again only if every reply was read that was asked for: whoever leaves before that, by a deadline or by
being cancelled, takes the connection along. So nobody reads what another asked for. Nothing is ever sent twice here: what
was sent and not answered may have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from router.sessions.stores.redis.breaker import Breaker, BreakerState, Patience
from router.sessions.stores.redis.deadline import Deadline
from router.sessions.stores.redis.errors import Reason, RedisUnavailable, ends_connection, translate

Command = tuple[bytes | str | int, ...]
Reply = object
"""What Redis answered; an error reply is a ResponseError, as a value."""


LARGE_CALL_BYTES = 64 << 10
"""A call of so much, or a reply of which some has come, may be slow where others are not: that it timed out closes the way to
nobody."""


class Server(Protocol):
    async def connect(self) -> AbstractConnection:
        """A connection on which commands may be sent. Raises what redis-py raises, or RedisUnavailable."""
        ...

    def forget(self) -> None:
        """It failed: where it is has to be found out anew."""
        ...


@dataclass(slots=True)
class _Call:
    packed: bytes
    count: int
    """Of its commands."""
    is_arriving: bool = False
    """It was left when some of a reply was there, and not all."""

    @property
    def is_large(self) -> bool:
        return self.is_arriving or len(self.packed) >= LARGE_CALL_BYTES


class Pool:
    """``clock``: monotonic. ``pending``: calls that wait for a connection or for their replies."""

    def __init__(self, server: Server, max_connections: int, patience: Patience, clock: Callable[[], float]) -> None:
        self._server = server
        self._clock = clock
        self._breaker = Breaker(patience)
        self._room = asyncio.Semaphore(max_connections)
        self._idle: list[AbstractConnection] = []
        self._era = 0
        """Connections of an earlier one are not used again."""
        self.pending = 0

    @property
    def state(self) -> BreakerState:
        return self._breaker.state(self._clock())

    async def exchange(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Send them in one write on one connection, and read their replies. ``deadline``: by the loop's clock.

        Raises RedisUnavailable, where they may have been carried out or not.
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
            if call.is_large:  # it tells of its size, and of nobody's health
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
            # There is something to read: its end, or what nobody asked for.
            if not await connection.can_read():
                return connection
            await connection.disconnect(nowait=True)
        return await self._server.connect()

    async def forget(self) -> None:
        """Who answered until now may not be whom to ask: no connection is used again."""
        self._era += 1
        self._server.forget()
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def close(self) -> None:
        self._era += 1
        while self._idle:
            await self._idle.pop().disconnect()


def _packed(commands: Sequence[Command]) -> bytes:
    # Its stub says a tuple of one.
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]


async def _read(connection: AbstractConnection) -> Reply:
    try:
        # It is looked at before it is given up, and whoever took it does that.
        return await connection.read_response(disconnect_on_error=False)
    except InvalidResponse:
        raise
    except ResponseError as error:
        return error
