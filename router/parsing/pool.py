"""The processes that read costly bodies: begun when they are needed, ended when they are not, taken in turn by tenants.

What is called must be picklable: a function of a module, or a ``partial`` of one. What it returns is pickled, too, so it must
be small beside the body, or take no time to unpickle.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from router.core.errors import InvalidRequest, Overloaded, RouterError, Unavailable
from router.core.request import Tenant
from router.parsing.child import LENGTH_BYTES
from router.tenant_turns import TenantTurns

log = logging.getLogger("warmroute.parsing")

LARGE_BYTES = 512 << 10
"""From here on a body is read elsewhere, whatever is in it: text of this size takes up to 4 ms."""

CHEAP_BYTES = 64 << 10
"""Of brackets, commas and digits, which take up to 0.11 µs each; the rest takes a hundredth of that."""

READ_S = 20.0
"""For one body. The slowest seen of 8 MiB took a second."""

MAX_WAITING, MAX_WAIT_S = 64, 30.0
"""Bodies of one tenant that wait for a process, and for how long."""

IDLE_S = 10.0
"""After which a process that has nothing to do ends, and gives back its memory."""

BASE_MEMORY_BYTES = 512 << 20
MEMORY_RATIO = 64
"""Address space of a process: what Python itself maps, and so many bytes for each of the largest body. Dictionaries take the
most: 35 bytes for each of JSON's."""

_COSTLY = b"[]{},:0123456789"

T = TypeVar("T")


class ParserDied(Unavailable):
    """Its process ended, or was too slow, and was ended."""


def is_cheap(body: bytes) -> bool:
    """May it be read between two turns of the event loop? 40 µs to look at 64 KiB; 0.4 ms at the most."""
    size = len(body)
    return size < CHEAP_BYTES or (size < LARGE_BYTES and size - len(body.translate(None, _COSTLY)) < CHEAP_BYTES)


class Parsers:
    """``max_body_bytes``: of the largest body, by which a process's memory is bounded."""

    def __init__(self, processes: int, max_body_bytes: int) -> None:
        """A tenant leaves one process to the others, where there are several."""
        self._max_memory_bytes = BASE_MEMORY_BYTES + MEMORY_RATIO * max_body_bytes
        self._idle: list[_Parser] = []
        self._working: set[asyncio.Task[object]] = set()
        self.max_processes = processes
        self.turns = TenantTurns(
            max_calls=processes,
            max_owner_calls=max(1, processes - 1),
            max_waiting=MAX_WAITING,
            max_wait_s=MAX_WAIT_S,
            refuse=lambda why: Overloaded(f"too many large bodies: {why}", retry_after_s=1),
        )
        self.is_closed = False

    @property
    def processes(self) -> int:
        return len(self._idle) + len(self._working)

    async def run(self, tenant: Tenant, parse: Callable[[bytes], T], *pieces: bytes) -> T:
        """What ``parse`` makes of the body, in another process. Raises what it raises; Overloaded, ParserDied."""
        await self.turns.take(tenant)
        # A caller that leaves does not end the process, which a flood of such callers would make new ones of.
        work = asyncio.ensure_future(self._work(tenant, parse, pieces))
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        return await asyncio.shield(work)

    async def _work(self, tenant: Tenant, parse: Callable[[bytes], T], pieces: Sequence[bytes]) -> T:
        parser, is_sound = None, False
        try:
            parser = self._idle.pop() if self._idle else await _Parser.begin(self._max_memory_bytes)
            parser.stop_idling()
            async with asyncio.timeout(READ_S):
                answer = await parser.ask(parse, pieces)
            is_sound = True
            return answer
        except RouterError:
            is_sound = True
            raise
        except TimeoutError:
            raise InvalidRequest(f"the body took over {READ_S:g} s to read: send it in parts") from None
        except (OSError, EOFError, asyncio.IncompleteReadError) as error:
            fields = {"error": type(error).__name__, "body_bytes": sum(map(len, pieces))}
            log.error("a parsing process ended", extra=fields)  # noqa: TRY400  # the trace ends at a pipe
            raise ParserDied("the router could not read the body: try again", retry_after_s=1) from None
        finally:
            if parser is not None and is_sound and not self.is_closed:
                self._idle.append(parser)
                parser.begin_idling(self._retire)
            elif parser is not None:
                parser.end()
            self.turns.give(tenant)

    def _retire(self, parser: _Parser) -> None:
        if parser in self._idle:
            self._idle.remove(parser)
            parser.end()

    async def aclose(self) -> None:
        self.is_closed = True
        for work in tuple(self._working):
            work.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        while self._idle:
            await self._idle.pop().aclose()


class _Parser:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._idling: asyncio.TimerHandle | None = None

    @classmethod
    async def begin(cls, max_memory_bytes: int) -> _Parser:
        """Raises OSError."""
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "router.parsing.child", str(max_memory_bytes)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )

    async def ask(self, parse: Callable[[bytes], T], pieces: Sequence[bytes]) -> T:
        """Raises what it raises; OSError, IncompleteReadError where the process has ended."""
        call = pickle.dumps(parse, protocol=5)
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EOFError
        stdin.write(len(call).to_bytes(LENGTH_BYTES) + sum(map(len, pieces)).to_bytes(LENGTH_BYTES) + call)
        stdin.writelines(pieces)
        size = int.from_bytes(await stdout.readexactly(LENGTH_BYTES))
        is_ok, value = pickle.loads(await stdout.readexactly(size))  # noqa: S301  # our own child's
        if is_ok:
            answer: T = value
            return answer
        error: RouterError = value
        raise error

    def begin_idling(self, retire: Callable[[_Parser], None]) -> None:
        self._idling = asyncio.get_running_loop().call_later(IDLE_S, retire, self)

    def stop_idling(self) -> None:
        if self._idling is not None:
            self._idling.cancel()

    def end(self) -> None:
        self.stop_idling()
        with suppress(ProcessLookupError):
            self._process.kill()

    async def aclose(self) -> None:
        self.end()
        await self._process.wait()
