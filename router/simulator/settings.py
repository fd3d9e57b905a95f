"""What a simulated fleet is told: sizes, rates and faults, checked once.

Decides nothing at run time. Durations are in the workers' own (virtual) time unless a docstring says wall.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from router.simulator.faults import Fault

Answers = Literal["plain", "bytes"]


def _require(holds: bool, key: str, bound: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{key} must be {bound}, not {value!r}")


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """One fleet of equal workers.

    Raises ValueError, naming key, bound and value, when a value is out of bounds.

    workers: how many, each on its own port. base_port: the first worker's port, the others follow; 0 lets the
    kernel pick. models: names of the base model; the first is the id of which the others are aliases. adapters: names
    served as LoRA adapters of it. cache_blocks, block_tokens: the KV cache of each worker. prefill_rate: tokens/s.
    itl_ms: what a step costs that decodes anything. attention_cost: s per token per token of context, prefill's
    quadratic term. step_overhead_ms: fixed cost of a step. request_overhead_ms: from a request's arrival until the
    scheduler sees it, besides the front end's work: request_work_ms for each request, which adds up over requests that
    come together, and tokenize_us_per_token for each token of its prompts. max_num_batched_tokens: tokens in a step.
    time_scale: virtual seconds per wall second.
    answers: "plain" words, a token each, or "bytes": text rich in characters of many bytes, which tokens split.
    stream_interval_ms (wall): the gap below which tokens of a stream share an event; 0 sends an event for the first
    token and for each `tokens_per_event` after it, which a request's own `stream_interval` can raise.
    vocabulary: file in which fleets in several processes keep what their token ids mean; empty: ids of prompts mean
    nothing to another process.
    keepalive_s (wall): after which an idle connection is closed. api_key: the bearer token of /v1/*, or None.
    poison: text in a request's body that crashes the worker which begins it; empty: none does.
    serves_pooling: whether /v1/embeddings, /v1/rerank and /v1/score exist. embedding_dims: length of a vector.
    """

    workers: int = 8
    base_port: int = 9500
    models: tuple[str, ...] = ("sim",)
    adapters: tuple[str, ...] = ()
    cache_blocks: int = 3000
    block_tokens: int = 512
    prefill_rate: float = 15_000.0
    itl_ms: float = 30.0
    attention_cost: float = 0.0
    step_overhead_ms: float = 0.0
    request_overhead_ms: float = 0.0
    request_work_ms: float = 0.0
    tokenize_us_per_token: float = 0.0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_model_len: int = 1_000_000
    time_scale: float = 20.0
    answers: Answers = "plain"
    stream_interval_ms: float = 25.0
    tokens_per_event: int = 1
    vocabulary: str = ""
    keepalive_s: float = 5.0
    max_body_bytes: int = 64 << 20
    api_key: str | None = None
    serves_pooling: bool = False
    embedding_dims: int = 16
    fault: Fault = Fault.NONE
    poison: str = ""

    def __post_init__(self) -> None:
        for key in ("workers", "cache_blocks", "block_tokens", "max_num_seqs", "max_model_len", "max_body_bytes"):
            _require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        _require(self.tokens_per_event >= 1, "tokens_per_event", "at least 1", self.tokens_per_event)
        _require(self.answers in get_args(Answers), "answers", "plain or bytes", self.answers)
        for key in ("prefill_rate", "time_scale", "keepalive_s", "embedding_dims"):
            _require(getattr(self, key) > 0, key, "above 0", getattr(self, key))
        for key in ("itl_ms", "attention_cost", "step_overhead_ms", "request_overhead_ms", "request_work_ms"):
            _require(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        for key in ("tokenize_us_per_token", "stream_interval_ms"):
            _require(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        _require(
            self.itl_ms + self.step_overhead_ms >= 0.001, "itl_ms + step_overhead_ms", "at least 0.001", self.itl_ms
        )
        last_port = self.base_port + self.workers - 1
        _require(self.base_port >= 0 and last_port <= 65_535, "base_port", "0 or leave a port for each", self.base_port)
        bound = f"above max_num_seqs ({self.max_num_seqs})"
        _require(
            self.max_num_batched_tokens > self.max_num_seqs,
            "max_num_batched_tokens",
            bound,
            self.max_num_batched_tokens,
        )
        _require(bool(self.models), "models", "at least one name", self.models)
        names = self.models + self.adapters
        _require(len(set(names)) == len(names), "models, adapters", "names that differ", names)
