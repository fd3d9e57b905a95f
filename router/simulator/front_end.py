"""A worker's front end in virtual time: the one process that reads, checks and tokenises every request.

It works on the requests it has side by side, as tasks of one event loop do, so that those of one batch are through
together, when all their work is done; who comes meanwhile is in the next batch. Pure: knows of time only what it is
told. Must never let a later batch through before an earlier one.

    arrived ──front end is free──▶ batch: Σ work ──▶ + latency ──▶ ready for the scheduler
"""

from router.simulator.generation import Generation


class FrontEnd:
    """Those that wait, and when it will be free. Times must not go back between calls; all is O(1) a request."""

    def __init__(self, latency_ns: int) -> None:
        self._latency_ns = latency_ns
        self._arrived: dict[Generation, int] = {}
        self._free_ns = 0

    def __len__(self) -> int:
        """How many wait for a batch to begin."""
        return len(self._arrived)

    def take(self, generation: Generation, now_ns: int, work_ns: int) -> None:
        """One has arrived now, and needs that much work; what is free begins with it by `begin_batch`."""
        if not self._arrived:
            self._free_ns = max(self._free_ns, now_ns)
        self._arrived[generation] = work_ns

    def drop(self, generation: Generation) -> bool:
        """Forget one whose batch has not begun; whether there was one."""
        return self._arrived.pop(generation, None) is not None

    def next_batch_ns(self) -> int | None:
        """When the next batch may begin; None while nobody waits for one."""
        return self._free_ns if self._arrived else None

    def begin_batch(self) -> list[Generation]:
        """Begin with all that have arrived, and return them with the time at which they will be ready."""
        batch = list(self._arrived)
        self._free_ns += sum(self._arrived.values())
        self._arrived.clear()
        for generation in batch:
            generation.ready_ns = self._free_ns + self._latency_ns
        return batch
