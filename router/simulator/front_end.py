"""A worker's front end in virtual time: the one process that reads, checks and tokenises every request.

It works on the requests it has side by side, as tasks of one event loop do, so that those of one batch are through
together, when all their work is done; who comes meanwhile is in the next batch. Pure: knows of time only what it is
told. Must never let a later batch through before an earlier one.

    arrived ──front end is free──▶ batch: Σ work ──▶ + latency ──▶ ready for the scheduler
"""

from dataclasses import dataclass

from router.simulator.generation import Generation


@dataclass(frozen=True, slots=True)
class RequestCost:
    """What a request costs before the scheduler sees it. Work adds up over those that come together; latency does not.

    latency_ns, work_ns: of each request; token_work_ns: of each token of its prompts.
    """

    latency_ns: int = 0
    work_ns: int = 0
    token_work_ns: float = 0.0

    def work_of(self, prompt_tokens: int) -> int:
        """Nanoseconds of work for one request with that many tokens in all its prompts."""
        return self.work_ns + round(self.token_work_ns * prompt_tokens)


class FrontEnd:
    """Times must not go back between calls. All is O(1) a request, but for dropping one that waits."""

    def __init__(self, latency_ns: int) -> None:
        self._latency_ns = latency_ns
        self._arrived: dict[Generation, int] = {}
        self._free_ns = 0

    def __len__(self) -> int:
        """How many wait for a batch to begin."""
        return len(self._arrived)

    def take(self, generation: Generation, work_ns: int) -> None:
        self._arrived[generation] = work_ns

    def drop(self, generation: Generation) -> bool:
        """Forget one whose batch has not begun; whether there was one."""
        return self._arrived.pop(generation, None) is not None

    def next_batch_ns(self) -> int | None:
        """When the next batch may begin; None while nobody waits for one."""
        return self._free_ns if self._arrived else None

    def begin_batch(self, now_ns: int) -> list[Generation]:
        """Begin with all that have arrived, and return them with the time at which they will be ready."""
        batch = list(self._arrived)
        self._free_ns = now_ns + sum(self._arrived.values())
        self._arrived.clear()
        for generation in batch:
            generation.ready_ns = self._free_ns + self._latency_ns
        return batch
