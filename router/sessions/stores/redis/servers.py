"""Finds the primary and connects to it: a server at an address, or the one that the Sentinels name."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, ResponseError

from router.sessions.stores.redis.errors import Reason, RedisUnavailable
from router.sessions.stores.redis.url import Address, Target

MIN_VERSION = (6, 2)
"""The scripts read the clock before they write, so Redis must replicate their effects and not their text. This release does,
and has the commands in the form that the scripts use."""

ONCE: dict[str, Any] = {
    "retry": Retry(NoBackoff(), 0),
    "socket_timeout": None,
    "socket_connect_timeout": None,
    "health_check_interval": 0,
    "protocol": 2,
    "decode_responses": False,
}
"""No retries, since the first try may have been carried out; and no timeouts, since each call has one deadline."""


class Primary:
    """The Sentinels are asked again after each failure, once for all calls that wait."""

    def __init__(self, target: Target, address: Address | None, sentinel_timeout_s: float) -> None:
        """``address``: None for a socket in the file system, and where Sentinels name the primary. ``sentinel_timeout_s``: for
        each step of asking one Sentinel, so that a Sentinel which hangs leaves time for the next."""
        self._target = target
        self._address = address
        self._sentinels: Sentinel | None = None
        if target.kind == "sentinel":
            timeouts = {"socket_timeout": sentinel_timeout_s, "socket_connect_timeout": sentinel_timeout_s}
            options = ONCE | target.sentinel_options | timeouts
            self._sentinels = Sentinel(list(target.addresses), sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._asking = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Primary({self._target!r}, at={self._address!r})"

    async def connect(self) -> AbstractConnection:
        """Raises what redis-py raises, or RedisUnavailable."""
        async with self._asking:
            if self._sentinels is not None and self._address is None:
                host, port = await self._sentinels.discover_master(self._target.service)
                self._address = (str(host), int(port))
            address = self._address
        return await connect(self._target, address)

    def forget(self) -> None:
        """After a failure: the Sentinels may name another by now."""
        if self._sentinels is not None:
            self._address = None

    async def close(self) -> None:
        if self._sentinels is not None:
            await self._sentinels.aclose()


async def connect(target: Target, address: Address | None, *, needs_primary: bool = True) -> AbstractConnection:
    """Raises what redis-py raises, and RedisUnavailable where the server is too old."""
    connection = make_connection(target, address)
    is_good = False
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
        await _greet(connection, needs_primary)
        is_good = True
        return connection
    finally:
        if not is_good:
            await connection.disconnect(nowait=True)


def make_connection(target: Target, address: Address | None) -> Connection | UnixDomainSocketConnection:
    place: dict[str, Any] = {} if address is None else {"host": address[0], "port": address[1]}
    return target.connection_class(**(ONCE | target.options | place))


async def _greet(connection: AbstractConnection, needs_primary: bool) -> None:
    await connection.send_command("HELLO")
    try:
        reply = await connection.read_response()
    except ResponseError as error:
        if "unknown command" in str(error).lower():
            raise RedisUnavailable(Reason.TOO_OLD, _needs("an older one")) from None
        raise
    told = dict(zip(reply[::2], reply[1::2], strict=True))
    version = told.get(b"version", b"").decode("ascii", "replace")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < MIN_VERSION:
        raise RedisUnavailable(Reason.TOO_OLD, _needs(version))
    if needs_primary and told.get(b"role") != b"master":
        raise ReadOnlyError("a replica")


def _needs(version: str) -> str:
    return f"it is {version}, and {'.'.join(map(str, MIN_VERSION))} is the oldest that works"
