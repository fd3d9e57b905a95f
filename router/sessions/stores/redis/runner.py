"""Runs scripts on the server of their key: one deadline for a call, a bounded number of calls for each owner, and a write only
acknowledged once enough replicas confirm it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from redis.exceptions import NoScriptError

from router.core.request.request import Tenant
from router.runtime.breaker import BreakerState, Patience
from router.runtime.fair_turns import FairTurns
from router.sessions.stores.contract import DEFAULT_LIMITS, Crowded, OwnerLimits
from router.sessions.stores.redis.cluster import Cluster
from router.sessions.stores.redis.errors import Reason, RedisUnavailable, translate
from router.sessions.stores.redis.pool import Command, Pool, Reply
from router.sessions.stores.redis.scripts import Script
from router.sessions.stores.redis.servers import Primary
from router.sessions.stores.redis.url import Address, Target

MAX_OWNER_CALLS = 16
"""Calls of one owner that this replica sends at once. Redis runs one script after another, so the calls of others wait for
no more than these."""
MAX_TURN_WAIT_S = 2.0
"""For other calls of the same owner."""


@dataclass(frozen=True, slots=True)
class RedisLimits:
    deadline_s: float = 0.2
    """For a whole call, from the wait for a connection to the last reply."""
    max_connections: int = 64
    """To each server. More calls wait for a connection, within their deadlines."""
    max_waiting: int = 256
    """Calls of one owner that may wait."""
    wait_replicas: int = 0
    """Replicas that must confirm a write before it is acknowledged."""
    wait_s: float = 0.1
    """Time for replicas to confirm; less than ``deadline_s``."""
    patience: Patience = field(default_factory=Patience)
    owner: OwnerLimits = DEFAULT_LIMITS


class Runner:
    """``clock``: monotonic."""

    def __init__(self, target: Target, limits: RedisLimits, clock: Callable[[], float]) -> None:
        self._servers = _servers(target, limits, clock)
        self._deadline_s = limits.deadline_s
        self._replicas = limits.wait_replicas
        self._wait: Command = ("WAIT", limits.wait_replicas, ceil(limits.wait_s * 1000))
        self.calls = FairTurns(
            max_calls=limits.max_connections,
            max_owner_calls=min(MAX_OWNER_CALLS, limits.max_connections),
            max_waiting=limits.max_waiting,
            max_wait_s=max(MAX_TURN_WAIT_S, limits.deadline_s),
            refuse=Crowded,
        )

    @property
    def breaker_state(self) -> BreakerState:
        return self._servers.state

    @property
    def pending(self) -> int:
        """Calls that wait for other calls of their owner, for a connection or for their replies."""
        return self._servers.pending + self.calls.waiting

    async def run(self, script: Script, key: bytes, owner: Tenant, *arguments: bytes | str | int) -> list[Any]:
        """The reply of the script: a word, and what belongs to it. Raises RedisUnavailable, Crowded or Corrupt."""
        async with self.calls.of(owner):
            return await self.run_now(script, key, owner, *arguments)

    async def run_now(self, script: Script, key: bytes, *arguments: bytes | str | int) -> list[Any]:
        """Runs a script of the store itself, which waits for no other calls. Raises RedisUnavailable or Corrupt."""
        deadline = self._deadline()
        confirms = script.writes and self._replicas > 0
        after: list[Command] = [self._wait] if confirms else []
        replies = await self._servers.exchange(key, [(b"EVALSHA", script.sha, 1, key, *arguments), *after], deadline)
        if isinstance(replies[0], NoScriptError):
            # Nothing was run. A server that was restarted, took over or was flushed needs the text again.
            replies = await self._servers.exchange(key, [(b"EVAL", script.text, 1, key, *arguments), *after], deadline)
        for reply in replies:
            if isinstance(reply, Exception):
                raise translate(reply)
        if confirms and not (isinstance(replies[1], int) and replies[1] >= self._replicas):
            raise RedisUnavailable(Reason.UNCONFIRMED)
        found: list[Any] = replies[0]
        return found

    async def ask(self, commands: Sequence[Command]) -> list[Reply]:
        """Sends commands to any server. Raises RedisUnavailable."""
        return await self._servers.exchange(b"", commands, self._deadline())

    async def close(self) -> None:
        await self._servers.close()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._deadline_s


def _servers(target: Target, limits: RedisLimits, clock: Callable[[], float]) -> Pool | Cluster:
    step_s = limits.deadline_s / 4

    def pool_at(address: Address | None) -> Pool:
        return Pool(Primary(target, address, step_s), limits.max_connections, limits.patience, clock)

    if target.kind == "cluster":
        return Cluster(target, pool_at, limits.patience, step_s, clock)
    return pool_at(target.addresses[0] if target.kind == "alone" and target.addresses else None)
