"""A worker's front end in virtual time: the single process that reads, checks and tokenises every request.

It works on its requests in parallel, as tasks of one event loop. So the requests of a batch become ready together, when
the work for all of them is done; requests that arrive meanwhile form the next batch. Pure: the caller passes the time.
Must never let a later batch pass an earlier one.

    arrived ──front end is free──▶ batch: Σ work ──▶ + latency ──▶ ready for the scheduler
"""

from router.simulator.generation import Generation


class FrontEnd:
    """The waiting requests, and the time when the front end is free. Time must not go back. O(1) for each request."""

    def __init__(self, latency_ns: int) -> None:
        self._latency_ns = latency_ns
        self._arrived: dict[Generation, int] = {}
        self._free_ns = 0

    def __len__(self) -> int:
        """How many generations wait for their batch to begin."""
        return len(self._arrived)

    def take(self, generation: Generation, now_ns: int, work_ns: int) -> None:
        """Add a generation that arrives now and needs `work_ns` of work. `begin_batch` starts the work."""
        if not self._arrived:
            self._free_ns = max(self._free_ns, now_ns)
        self._arrived[generation] = work_ns

    def drop(self, generation: Generation) -> bool:
        """Remove a generation whose batch has not begun. Returns whether it was there."""
        return self._arrived.pop(generation, None) is not None

    def next_batch_ns(self) -> int | None:
        """The time when the next batch may begin; None while nothing waits."""
        return self._free_ns if self._arrived else None

    def begin_batch(self) -> list[Generation]:
        """Begin a batch with all that have arrived. Returns them and sets their `ready_ns`."""
        batch = list(self._arrived)
        self._free_ns += sum(self._arrived.values())
        self._arrived.clear()
        for generation in batch:
            generation.ready_ns = self._free_ns + self._latency_ns
        return batch
