"""The processes that read costly bodies: begun when they are needed, ended when they are not, taken in turn by tenants.

What is called must be picklable: a function of a module, or a ``partial`` of one. What it returns is pickled, too, so it must
be small beside the body, or take no time to unpickle.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from router.core.errors import InvalidRequest, Overloaded, RouterError, Unavailable
from router.core.request.request import Tenant
from router.runtime.fair_turns import FairTurns
from router.server.parsing.child import LENGTH_BYTES

log = logging.getLogger("warmroute.parsing")

LARGE_BYTES = 512 << 10
"""From here on a body is read elsewhere, whatever is in it: text of this size takes up to 4 ms."""

CHEAP_BYTES = 64 << 10
"""Whatever is in it: up to 6 ms."""

CHEAP_CONTAINERS = 32 << 10
"""Objects and arrays take 0.2 µs each, most of all that JSON has."""

FEW_CONTAINERS = 1_000
"""Of each. A long conversation has so many."""

LONG_DIGITS, TWO_DIGITS = 500, re.compile(rb"[0-9]{2}")
"""Numbers of a thousand digits take 0.1 µs for each, and every such number has two of the bytes that lie so far apart."""

READ_S = 20.0
"""For one body. The slowest seen took a second for 8 MiB."""

MAX_WAITING, MAX_WAIT_S = 64, 30.0
"""Bodies of one tenant that wait for a process, and for how long."""

IDLE_S = 10.0
"""After which a process that has nothing to do ends, and gives back its memory."""

BASE_MEMORY_BYTES = 512 << 20
MEMORY_RATIO = 16
"""Address space of a process: what Python itself maps, and so many bytes for each of the largest body. Text takes up to 11 of
them, where it has emoji. Many small values take more, dictionaries 35 bytes for each of JSON's: such a body is refused from
some megabytes on, whatever ``limits.max_body_bytes`` lets in."""

_RUN_CHILD = "import sys; sys.path[:] = sys.argv[2:]; from router.server.parsing.child import main; main()"

T = TypeVar("T")


class ParserDied(Unavailable):
    """The process that should read the body ended, or could not be begun."""


def is_cheap(body: bytes) -> bool:
    """May it be read between two turns of the event loop, in 15 ms or less? 50 µs to look at 400 kB of text."""
    if len(body) < CHEAP_BYTES:
        return True
    return (
        len(body) < LARGE_BYTES
        and ((_has_few(body, b"[") and _has_few(body, b"{")) or body.count(b"[") + body.count(b"{") < CHEAP_CONTAINERS)
        and TWO_DIGITS.search(body[::LONG_DIGITS]) is None
    )


def _has_few(body: bytes, byte: bytes) -> bool:
    """Where it has, this is ten times faster than to count them all: a kilobyte of text takes 20 ns."""
    at = -1
    return any((at := body.find(byte, at + 1)) < 0 for _ in range(FEW_CONTAINERS))


class Parsers:
    """``max_body_bytes``: of the largest body, by which a process's memory is bounded."""

    def __init__(self, processes: int, max_body_bytes: int) -> None:
        """A tenant leaves one process to the others, where there are several."""
        self._max_memory_bytes = BASE_MEMORY_BYTES + MEMORY_RATIO * max_body_bytes
        self._idle: list[_Parser] = []
        self._working: set[asyncio.Task[object]] = set()
        self._ending: set[asyncio.Future[None]] = set()
        self.max_processes = processes
        self.turns = FairTurns(
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
            parser = self._take_idle() or await self._begin()
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
                self._end(parser)
            self.turns.give(tenant)

    async def _begin(self) -> _Parser:
        try:
            return await _Parser.begin(self._max_memory_bytes)
        except OSError as error:
            log.error("no parsing process could be begun", extra={"error": str(error)})  # noqa: TRY400
            message = "the router could not begin a process to read the body: try again, or send a smaller one"
            raise ParserDied(message, retry_after_s=1) from None

    def _take_idle(self) -> _Parser | None:
        """A process may end while it idles: the system ends one where memory is short."""
        while self._idle:
            parser = self._idle.pop()
            if parser.is_alive:
                return parser
            self._end(parser)
        return None

    def _retire(self, parser: _Parser) -> None:
        if parser in self._idle:
            self._idle.remove(parser)
            self._end(parser)

    def _end(self, parser: _Parser) -> None:
        ending = parser.end()
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        self.is_closed = True
        for work in tuple(self._working):
            work.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        while self._idle:
            self._end(self._idle.pop())
        await asyncio.gather(*self._ending)


class _Parser:
    """One process, and the socket that is its standard input and output."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._idling: asyncio.TimerHandle | None = None

    @property
    def is_alive(self) -> bool:
        """False once the process has ended."""
        return self._process.poll() is None

    @classmethod
    async def begin(cls, max_memory_bytes: int) -> _Parser:
        """Raises OSError, and then leaves no descriptor open; uvloop's own subprocesses leave some when there are too few. The
        process imports from where this one does, and nothing from its working directory."""
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            process = subprocess.Popen(  # noqa: ASYNC220, S603  # 1 ms, and our own program
                (sys.executable, "-P", "-c", _RUN_CHILD, str(max_memory_bytes), *sys.path),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
            )
            undo.callback(_kill, process)
            reader, writer = await asyncio.open_connection(sock=ours)
            undo.pop_all()
            return cls(process, reader, writer)

    async def ask(self, parse: Callable[[bytes], T], pieces: Sequence[bytes]) -> T:
        """Raises what it raises; OSError, IncompleteReadError where the process has ended."""
        call = pickle.dumps(parse, protocol=5)
        sizes = len(call).to_bytes(LENGTH_BYTES) + sum(map(len, pieces)).to_bytes(LENGTH_BYTES)
        self._writer.writelines((sizes, call, *pieces))
        size = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
        is_ok, value = pickle.loads(await self._reader.readexactly(size))  # noqa: S301  # our own child's
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

    def end(self) -> asyncio.Future[None]:
        """Done when the process is gone, which takes a while where it has much memory."""
        self.stop_idling()
        self._writer.transport.abort()
        return asyncio.get_running_loop().run_in_executor(None, _kill, self._process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
