"""When a request is taken for what kills its workers, and given up. Pure.

A prompt that crashes engines would otherwise be carried from worker to worker until none is left. Whether a death was the
request's doing or chance nobody can tell; but chance rarely strikes one request several times within a few tokens, and what
crashes an engine does so in the prefill or soon behind it, for whoever goes on with an answer is given its whole state.
So those deaths count that follow one another without progress between them.

Progress is measured in chunks that reached the client, not in seconds: a worker may well hang for minutes before it dies
of a prompt. An answer that is held until it is whole shows no progress, and each death under it counts.
"""

from __future__ import annotations

from router.core.errors import PoisonRequest
from router.core.worker import WorkerName

PROGRESS_CHUNKS = 32
"""Reads of a stream that speak for its request: beyond what a worker sends between a bad step and its end, and about a
second of an answer, so that restarts one after another do not add up."""


class PoisonGuard:
    """Of workers under one request, over all of its attempts and resumptions. ``most``: how many it may see, ≥ 1."""

    __slots__ = ("_chunks", "_most", "workers")

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks = 0
        self.workers: tuple[WorkerName, ...] = ()
        """Who died since the last progress, in their order."""

    def add(self, worker: WorkerName, chunks: int) -> None:
        """One died that had the request. ``chunks``: of the answer, from whichever workers, until now."""
        if chunks - self._chunks >= PROGRESS_CHUNKS:
            self.workers = ()
        self._chunks = chunks
        self.workers += (worker,)

    def check(self) -> None:
        """May the request be sent to another worker? Raises PoisonRequest."""
        if len(self.workers) >= self._most:
            raise PoisonRequest(self.workers)
