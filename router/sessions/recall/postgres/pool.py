"""A bounded number of connections to PostgreSQL, each used by one call at a time. A call that fails, is cancelled or takes too
long closes its connection, so that no call reads the reply of another. The pool of asyncpg would wait for the server to
confirm that, and a server that hangs does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import asyncpg

from router.runtime.breaker import Breaker, Patience
from router.sessions.recall.index import IndexUnavailable

P = ParamSpec("P")
T = TypeVar("T")

Connection = Any
"""An ``asyncpg.Connection``, which has no types."""

PATIENCE = Patience(max_failures=3, min_pause_s=1.0, max_pause_s=1.0)
AWAY = (
    OSError,  # and so TimeoutError
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""Errors which show that this server does not serve, as opposed to refusing one call."""
NO_SCHEMA = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)


class Pool:
    def __init__(
        self,
        url: str,
        max_connections: int,
        max_pending: int,
        statement_timeout_s: float,
        prepare: Callable[[Connection], Awaitable[None]],
    ) -> None:
        """``prepare``: runs with the first connection, and again if the server has lost the schema. ``statement_timeout_s``:
        the server ends a statement after it, also where no caller waits any more."""
        self._url = url
        self._statement_timeout = f"{round(statement_timeout_s * 1000)}ms"
        self._prepare = prepare
        self._is_prepared = False
        self._is_closed = False
        self._seats = asyncio.Semaphore(max_connections)
        self._idle: list[Connection] = []
        self._breaker = Breaker(PATIENCE)
        self.pending = 0
        self.max_pending = max_pending

    async def run(
        self,
        deadline: float,
        work: Callable[Concatenate[Connection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Runs ``work`` in a transaction. ``deadline``: by the loop's clock. Raises IndexUnavailable."""
        self._check()
        self.pending += 1
        try:
            async with asyncio.timeout_at(deadline), self._seats:
                done = await self._transact(lambda connection: work(connection, *args, **kwargs))
        except AWAY as error:
            # The failure has met idle connections as well.
            self._drop_idle()
            self._breaker.failed(asyncio.get_running_loop().time())
            raise _unavailable(error) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._is_prepared = self._is_prepared and not isinstance(error, NO_SCHEMA)
            self._breaker.succeeded()
            raise _unavailable(error) from error
        except BaseException:
            self._breaker.abandoned()
            raise
        finally:
            self.pending -= 1
        self._breaker.succeeded()
        return done

    def close(self) -> None:
        """Closing again does nothing."""
        self._is_closed = True
        self._drop_idle()

    def _check(self) -> None:
        if self._is_closed:
            raise IndexUnavailable("PostgreSQL: the index is closed")
        if self.pending >= self.max_pending:
            raise IndexUnavailable(f"PostgreSQL: {self.pending} calls wait already")
        if not self._breaker.admits(asyncio.get_running_loop().time()):
            raise IndexUnavailable("PostgreSQL: it did not answer lately, and is not asked for a while")

    async def _transact(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        connection = await self._take()
        try:
            done = await _whole(connection, work)
        except BaseException:
            connection.terminate()
            raise
        self._give_back(connection)
        return done

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if self._is_prepared and not connection.is_closed():
                return connection
            connection.terminate()
        connection = await asyncpg.connect(self._url)
        try:
            await connection.execute("SELECT set_config('statement_timeout', $1, false)", self._statement_timeout)
            if not self._is_prepared:
                await _whole(connection, self._prepare)
                self._is_prepared = True
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _give_back(self, connection: Connection) -> None:
        if self._is_closed or connection.is_closed():
            connection.terminate()
        else:
            self._idle.append(connection)

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()


async def _whole(connection: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Runs ``work`` in a transaction. A failed one is not rolled back, which would wait for the server: the caller closes the
    connection."""
    transaction = connection.transaction()
    await transaction.start()
    done = await work(connection)
    await transaction.commit()
    return done


def _unavailable(error: BaseException) -> IndexUnavailable:
    """The message leaves out the text of the error, which may quote a session."""
    if isinstance(error, TimeoutError):
        return IndexUnavailable("PostgreSQL: no answer in time")
    code = getattr(error, "sqlstate", None) or getattr(error, "strerror", None)
    return IndexUnavailable(f"PostgreSQL: {type(error).__name__}" + (f" ({code})" if code else ""))
