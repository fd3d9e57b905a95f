"""A Redis Cluster: a pool for each primary, and a map from slots to primaries.

Any node is asked for the map at the start and after a failure. A node that does not have a slot answers with the one that has
it. It has not carried the command out, so the command may be sent there.

It stands in for ``RedisCluster`` of redis-py. That one sends WAIT to every primary instead of behind the script on the same
connection, sends commands again by itself, has neither deadline nor circuit breaker for each node, and needs the right to run
COMMAND.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, RedisError

from router.runtime.breaker import Breaker, BreakerState, Patience
from router.sessions.stores.redis.errors import Reason, RedisUnavailable, translate
from router.sessions.stores.redis.pool import Command, Pool, Reply
from router.sessions.stores.redis.servers import connect
from router.sessions.stores.redis.url import Address, Target

MAX_REDIRECTIONS = 3
MAX_ASKED = 3
"""Nodes that one call asks for the map. The next call goes on with others."""

SlotMap = list[Address | None]


class Cluster:
    """``clock``: monotonic."""

    def __init__(
        self,
        target: Target,
        make_pool: Callable[[Address], Pool],
        patience: Patience,
        node_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        """``node_timeout_s``: for asking one node for the map, so that a node which hangs leaves time for the next."""
        self._target = target
        self._make_pool = make_pool
        self._node_timeout_s = node_timeout_s
        self._clock = clock
        self._pools: dict[Address, Pool] = {}
        self._owners: SlotMap = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._is_stale = True
        self._asking = asyncio.Lock()
        self._asks_map = Breaker(patience)
        self._failed_asks = 0

    @property
    def state(self) -> BreakerState:
        """The worst of all nodes."""
        return max([self._asks_map.state(self._clock()), *(pool.state for pool in self._pools.values())])

    @property
    def pending(self) -> int:
        return sum(pool.pending for pool in self._pools.values())

    async def exchange(self, key: bytes, commands: Sequence[Command], deadline: float) -> list[Reply]:
        slot = key_slot(key)
        if self._is_stale:
            await self._renew_map(deadline)
        address = self._owners[slot]
        if address is None:
            raise RedisUnavailable(Reason.CLUSTER, "no node serves this slot")
        replies = await self._ask(address, commands, deadline)
        for _ in range(MAX_REDIRECTIONS):
            redirection = next((reply for reply in replies if isinstance(reply, AskError)), None)
            if redirection is None:
                break
            address = (redirection.host or address[0], int(redirection.port))
            if isinstance(redirection, MovedError):
                self._owners[slot] = address
                self._is_stale = True
                replies = await self._ask(address, commands, deadline)
            else:
                replies = (await self._ask(address, [("ASKING",), *commands], deadline))[1:]
        return replies

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()

    async def _ask(self, address: Address, commands: Sequence[Command], deadline: float) -> list[Reply]:
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = self._make_pool(address)
        try:
            return await pool.exchange(b"", commands, deadline)
        except RedisUnavailable as error:
            if error.reason is not Reason.PAUSED:
                self._is_stale = True
            raise

    async def _renew_map(self, deadline: float) -> None:
        """One call asks for all that wait. The old map stays where no node answers; without one, raises RedisUnavailable."""
        try:
            async with asyncio.timeout_at(deadline), self._asking:
                if self._is_stale:
                    await self._adopt(await self._fetch_map())
        except (RedisUnavailable, TimeoutError) as error:
            if not any(self._owners):
                raise translate(error) from None

    async def _fetch_map(self) -> SlotMap:
        if not self._asks_map.admits(self._clock()):
            raise RedisUnavailable(Reason.PAUSED)
        try:
            found = await self._ask_nodes()
        except RedisUnavailable:
            self._asks_map.failed(self._clock())
            raise
        except asyncio.CancelledError:
            self._asks_map.abandoned()
            raise
        self._asks_map.succeeded()
        return found

    async def _ask_nodes(self) -> SlotMap:
        nodes = list(dict.fromkeys([*self._pools, *self._target.addresses]))
        failure = RedisUnavailable(Reason.CLUSTER, "no node was asked")
        for _ in range(min(MAX_ASKED, len(nodes))):
            node = nodes[self._failed_asks % len(nodes)]
            try:
                async with asyncio.timeout(self._node_timeout_s):
                    return await _ask_node(self._target, node)
            except (RedisError, RedisUnavailable, OSError) as error:
                self._failed_asks += 1
                told = translate(error)
                failure = told if isinstance(told, RedisUnavailable) else failure
        raise failure

    async def _adopt(self, owners: SlotMap) -> None:
        self._owners = owners
        self._is_stale = False
        for gone in self._pools.keys() - set(owners):
            await self._pools.pop(gone).close()


async def _ask_node(target: Target, node: Address) -> SlotMap:
    connection = await connect(target, node, needs_primary=False)
    try:
        await connection.send_command("CLUSTER", "SLOTS")
        return _slot_map(await connection.read_response(), node)
    finally:
        await connection.disconnect(nowait=True)


def _slot_map(ranges: Iterable[Any], told_by: Address) -> SlotMap:
    """``ranges``: first slot, last slot, the primary as host, port, …, then its replicas. An empty host is that of the node
    that was asked."""
    owners: SlotMap = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, primary, *_ in ranges:
        host = primary[0].decode() if primary[0] else told_by[0]
        owners[first : last + 1] = [(host, int(primary[1]))] * (last + 1 - first)
    return owners
