"""Where a key's commands go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from router.sessions.stores.redis.breaker import BreakerState
from router.sessions.stores.redis.pool import Command, Pool, Reply
from router.sessions.stores.redis.servers import AloneServer, SentinelServer


class Topology(Protocol):
    async def exchange(self, key: bytes, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """As ``Pool.exchange``, with the server that has the key."""
        ...

    async def distrust(self) -> None:
        """No connection is used again: what comes over one of them is not what was asked for."""
        ...

    @property
    def state(self) -> BreakerState:
        """The worst of them, where there are several servers."""
        ...

    @property
    def pending(self) -> int:
        """Calls that wait for a connection or for their replies."""
        ...

    async def close(self) -> None: ...


class OnePrimary:
    def __init__(self, server: AloneServer | SentinelServer, pool: Pool) -> None:
        self._server = server
        self._pool = pool

    @property
    def state(self) -> BreakerState:
        return self._pool.state

    @property
    def pending(self) -> int:
        return self._pool.pending

    async def exchange(self, key: bytes, commands: Sequence[Command], deadline: float) -> list[Reply]:  # noqa: ARG002
        return await self._pool.exchange(commands, deadline)

    async def distrust(self) -> None:
        await self._pool.forget()

    async def close(self) -> None:
        await self._pool.close()
        await self._server.close()
