"""When a request counts as poison, which kills its workers, and is given up. Pure.

A prompt that crashes engines would otherwise go from worker to worker until none is left. A single death may be chance. But
chance rarely strikes one request several times within a few tokens, and a prompt that crashes an engine does so in the prefill
or soon after it, also when another worker continues its answer. So deaths count that follow one another without progress.

Progress is measured in chunks that reached the client, not in seconds: a worker may hang for minutes before it dies. An answer
that is held until it is whole shows no progress, so each death counts.
"""

from __future__ import annotations

from router.core.errors import PoisonRequest
from router.core.worker import WorkerName

PROGRESS_CHUNKS = 32
"""Chunks that clear a request: more than a worker sends between a bad step and its death, and about a second of an answer, so
that rolling restarts do not add up."""


class PoisonGuard:
    """Deaths of workers under one request, over all its attempts and resumptions. ``most``: deaths at which it is poison, ≥
    1."""

    __slots__ = ("_chunks", "_most", "workers")

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks = 0
        self.workers: tuple[WorkerName, ...] = ()
        """The workers that died since the last progress, in order."""

    def __repr__(self) -> str:
        return f"PoisonGuard({len(self.workers)} of {self._most} deaths)"

    def add(self, worker: WorkerName, chunks: int) -> None:
        """A worker died that had the request. ``chunks``: of the answer, from all workers, until now."""
        if chunks - self._chunks >= PROGRESS_CHUNKS:
            self.workers = ()
        self._chunks = chunks
        self.workers += (worker,)

    def check(self) -> None:
        """Raises PoisonRequest if the request must not be sent to another worker."""
        if len(self.workers) >= self._most:
            raise PoisonRequest(self.workers)
