"""Owns the processes that parse costly bodies: begins them when they are needed, ends them when they are not, and shares them
among tenants in turn.

A call must be picklable: a function of a module, or a ``partial`` of one. Its result is pickled, too, so it must be small
beside the body, or quick to unpickle.
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
"""A body from this size on is parsed in another process. Text of this size takes up to 4 ms."""

CHEAP_BYTES = 64 << 10
"""A body below this size is parsed here, whatever its content. It takes up to 6 ms."""

CHEAP_CONTAINERS = 32 << 10
"""Most objects and arrays of a body that is parsed here. Each takes 0.2 µs, more than any other value."""

FEW_CONTAINERS = 1_000
"""Number of each kind of bracket that is few. A long conversation has as many."""

LONG_DIGITS, TWO_DIGITS = 500, re.compile(rb"[0-9]{2}")
"""Numbers of a thousand digits take 0.1 µs a digit. Every such number has two of the bytes at this distance."""

READ_S = 20.0
"""Longest time for one body. The slowest measured took a second for 8 MiB."""

MAX_WAITING, MAX_WAIT_S = 64, 30.0
"""Most bodies of one tenant that wait for a process, and for how long."""

IDLE_S = 10.0
"""An idle process ends after this time, and returns its memory."""

BASE_MEMORY_BYTES = 512 << 20
MEMORY_RATIO = 16
"""Address space of a process: that of Python itself, and this many bytes for each of the largest body. Text takes up to 11 of
them, if it has emoji. Many small values take more, dictionaries 35 for each byte of JSON: such a body is refused from some
megabytes on, whatever ``limits.max_body_bytes`` allows."""

_RUN_CHILD = "import sys; sys.path[:] = sys.argv[2:]; from router.server.parsing.child import main; main()"

T = TypeVar("T")


class ParserDied(Unavailable):
    """The process ended before it had parsed the body, or could not begin."""


def is_cheap(body: bytes) -> bool:
    """True if the body can be parsed between two turns of the loop, in 15 ms or less. The check takes 50 µs for 400 kB of
    text."""
    if len(body) < CHEAP_BYTES:
        return True
    return (
        len(body) < LARGE_BYTES
        and ((_has_few(body, b"[") and _has_few(body, b"{")) or body.count(b"[") + body.count(b"{") < CHEAP_CONTAINERS)
        and TWO_DIGITS.search(body[::LONG_DIGITS]) is None
    )


def _has_few(body: bytes, byte: bytes) -> bool:
    """True for few of ``byte``. This is ten times faster than counting all if there are few: a kilobyte of text takes 20 ns."""
    at = -1
    return any((at := body.find(byte, at + 1)) < 0 for _ in range(FEW_CONTAINERS))


class Parsers:
    """``max_body_bytes`` is the largest body. It bounds the memory of a process."""

    def __init__(self, processes: int, max_body_bytes: int) -> None:
        """A tenant leaves one process to the others if there are several."""
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
        """The result of ``parse`` on the body, in another process. Raises what ``parse`` raises; Overloaded, ParserDied."""
        await self.turns.take(tenant)
        # A caller that leaves does not end the process: a flood of such callers would make one new process after another.
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
        """An idle process that still runs. The system may end one when memory is short."""
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
        """Raises OSError, and then leaves no descriptor open, as uvloop's own subprocesses do when descriptors are short. The
        process imports from the same places as this one, and nothing from its working directory."""
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
        """Raises what ``parse`` raises; OSError, IncompleteReadError if the process has ended."""
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
        """Done when the process is gone. That takes a while if it has much memory."""
        self.stop_idling()
        self._writer.transport.abort()
        return asyncio.get_running_loop().run_in_executor(None, _kill, self._process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
