"""Where the primary is, and a connection to it: one server alone, or whichever the Sentinels name."""

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
"""What scripts read of the clock is not replicated as a command; list and expiry commands are as the scripts use them."""

ONCE: dict[str, Any] = {
    "retry": Retry(NoBackoff(), 0),
    "socket_timeout": None,
    "socket_connect_timeout": None,
    "health_check_interval": 0,
    "protocol": 2,
    "decode_responses": False,
}
"""Nothing is done twice, since it may have been done the first time; and there is one deadline, the call's."""


class AloneServer:
    def __init__(self, target: Target, address: Address | None) -> None:
        """``address``: None for a socket in the file system."""
        self._target = target
        self._address = address

    async def connect(self) -> AbstractConnection:
        return await connect(self._target, self._address)

    def forget(self) -> None:
        pass

    async def close(self) -> None:
        pass


class SentinelServer:
    """The primary of a service; it is asked for again after each failure, and by one call for all that wait."""

    def __init__(self, target: Target, sentinel_timeout_s: float) -> None:
        """``sentinel_timeout_s``: for each step of asking one Sentinel, so that one which hangs leaves time for the next."""
        self._target = target
        options = ONCE | target.sentinel_options
        options |= {"socket_timeout": sentinel_timeout_s, "socket_connect_timeout": sentinel_timeout_s}
        self._sentinels = Sentinel(list(target.addresses), sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._primary: Address | None = None
        self._asking = asyncio.Lock()

    async def connect(self) -> AbstractConnection:
        async with self._asking:
            if self._primary is None:
                host, port = await self._sentinels.discover_master(self._target.service)
                self._primary = (str(host), int(port))
            primary = self._primary
        return await connect(self._target, primary)

    def forget(self) -> None:
        self._primary = None

    async def close(self) -> None:
        await self._sentinels.aclose()


async def connect(target: Target, address: Address | None, *, needs_primary: bool = True) -> AbstractConnection:
    """Raises what redis-py raises, or RedisUnavailable where the server is too old or no primary."""
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
    return f"it is {version}, and {'.'.join(map(str, MIN_VERSION))} is the oldest that will do"
