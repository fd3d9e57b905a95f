"""The engine's values: generations, their states and events, and the engine's limits. The rules are in `engine`."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from router.simulator.prefix_cache import Holding


class State(Enum):
    WAITING = 0
    PREFILLING = 1
    DECODING = 2
    DONE = 3


class Generation:
    """One prompt and its answer to generate. The engine sets the other fields.

    hashes: hashes of the prompt's full blocks. output_tokens: the exact length of the answer; 0 for pooling.
    output_hashes: hashes of the full blocks after the prompt's; a lookup can hit them when the request has ended.
    Times are virtual nanoseconds, 0 until they are known.
    """

    __slots__ = (
        "cached_tokens", "computed_tokens", "finish_reason", "finish_step", "first_ns", "first_step", "hashes",
        "holding", "output_hashes", "output_tokens", "prompt_tokens", "ready_ns", "scheduled_ns", "state",
    )  # fmt: skip

    def __init__(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        hashes: Sequence[int] = (),
        output_hashes: Sequence[int] = (),
        finish_reason: str = "length",
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.hashes = hashes
        self.output_hashes = output_hashes
        self.finish_reason = finish_reason
        self.state = State.WAITING
        self.holding: Holding | None = None
        self.cached_tokens = self.computed_tokens = 0
        self.first_step = self.finish_step = 0
        self.ready_ns = self.scheduled_ns = self.first_ns = 0


@dataclass(frozen=True, slots=True)
class Event:
    """The first or the last token of a generation. A generation of one token has both events, first then last."""

    generation: Generation
    at_ns: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds and costs of a step. prefill_rate: tokens/s. attention_cost: seconds per token per token of context."""

    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_rate: float
    attention_cost: float
    itl_ns: int
    step_overhead_ns: int
