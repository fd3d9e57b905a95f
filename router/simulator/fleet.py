"""Starts and stops a fleet of simulated workers on the running event loop.

Each worker has its own engine, cache and port. All workers serve one model, so they share its vocabulary and book.
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
    """Running workers by number, in the order of their ports. Close with `aclose`, or use as an async context manager."""

    def __init__(self, servers: list[WorkerServer], host: str) -> None:
        self._servers = servers
        self._host = host
        self._stopped: set[int] = set()

    @property
    def urls(self) -> list[str]:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return [f"http://{host}:{server.port}" for server in self._servers]

    def set_fault(self, worker: int, fault: Fault, *, after_events: int | None = None) -> None:
        """Make one worker misbehave from now on; `Fault.NONE` ends it. With `after_events`, break a single stream.

        All streams of the worker count: the stream that would send the event after that many breaks. The opening of a
        stream, each delta and the end of a stream are one event each.
        """
        self._servers[worker].worker.set_fault(fault, after_events)

    async def kill(self, worker: int) -> None:
        """End one worker as SIGKILL does: its connections break and its port refuses connections. Idempotent."""
        if worker not in self._stopped:
            self._stopped.add(worker)
            await self._servers[worker].stop()

    async def restart(self, worker: int) -> None:
        """Start one worker again, on its port, with a cold cache and a new start time."""
        await self.kill(worker)
        await self._servers[worker].start(self._host)
        self._stopped.discard(worker)

    async def drain(self, timeout_s: float) -> None:
        """Drain all workers as SIGTERM does: new requests get 500. Returns when none runs, or after `timeout_s` (wall)."""
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
    """Start all workers. Raises OSError if a port is taken; then no worker runs."""
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
    """The vocabulary and the book of the model. The vocabulary has all tokens of the book from the start."""
    if settings.answers == "bytes":
        book = rich_book()
        return Vocabulary(dict(book.numbered()), settings.vocabulary), book
    vocabulary, book = Vocabulary(file=settings.vocabulary), Book()
    vocabulary.ids_of(book.tokens)
    return vocabulary, book
