"""Starts and stops a fleet of simulated workers in this process and on this event loop.

Each worker has its own engine, cache and port; the vocabulary and the book are shared, as equal models share theirs.
"""

import asyncio
from types import TracebackType
from typing import Self

from router.simulator.answers import Book
from router.simulator.faults import Fault
from router.simulator.rich import rich_book
from router.simulator.server import WorkerServer
from router.simulator.settings import SimulatorSettings
from router.simulator.tokenizer import Vocabulary


class SimulatedFleet:
    """Running workers, in the order of their ports. Close it with `aclose`, or use it as an async context manager."""

    def __init__(self, servers: list[WorkerServer], host: str) -> None:
        self._servers = servers
        self._host = host
        self._stopped: set[int] = set()

    @property
    def urls(self) -> list[str]:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return [f"http://{host}:{server.port}" for server in self._servers]

    def set_fault(self, worker: int, fault: Fault, *, after_events: int | None = None) -> None:
        """Make one worker misbehave from now on, or stop doing so; with `after_events`, break one stream and no more.

        That stream is the one that would send the event after so many of all the worker's streams. What opens a
        stream is an event, each delta is one, and what comes after the last delta is one.
        """
        self._servers[worker].worker.set_fault(fault, after_events)

    async def kill(self, worker: int) -> None:
        """End one worker as SIGKILL does: its connections break and its port refuses. Idempotent."""
        if worker not in self._stopped:
            self._stopped.add(worker)
            await self._servers[worker].stop()

    async def restart(self, worker: int) -> None:
        """Bring one worker back on its port with a cold cache and a new start time."""
        await self.kill(worker)
        await self._servers[worker].start(self._host)
        self._stopped.discard(worker)

    async def drain(self, timeout_s: float) -> None:
        """What SIGTERM does to workers that drain: new requests get 500 and running ones end, within that wall time."""
        for number in range(len(self._servers)):
            self.set_fault(number, Fault.DRAIN)
        try:
            async with asyncio.timeout(timeout_s):
                for server in self._servers:
                    await server.worker.wait_idle()
        except TimeoutError:
            return

    async def aclose(self) -> None:
        """Stop every worker at once."""
        for number in range(len(self._servers)):
            await self.kill(number)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def start_fleet(settings: SimulatorSettings, *, host: str = "127.0.0.1") -> SimulatedFleet:
    """Start all workers, or none: raises OSError when a port is taken."""
    vocabulary, book = _language(settings)
    servers = [WorkerServer(settings, vocabulary, book, number) for number in range(settings.workers)]
    started: list[WorkerServer] = []
    try:
        for server in servers:
            await server.start(host)
            started.append(server)
    except BaseException:
        for server in started:
            await server.stop()
        raise
    return SimulatedFleet(servers, host)


def _language(settings: SimulatorSettings) -> tuple[Vocabulary, Book]:
    """The vocabulary and the book of a model. A book's tokens are known from the start, whoever generated them."""
    if settings.answers == "bytes":
        book = rich_book()
        return Vocabulary(dict(book.numbered()), settings.vocabulary), book
    vocabulary, book = Vocabulary(file=settings.vocabulary), Book()
    vocabulary.ids_of(book.tokens)
    return vocabulary, book
