"""The settings of a simulated fleet: sizes, rates and faults. The constructor checks their bounds.

Durations are in the workers' virtual time unless a docstring says wall.
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

    Raises ValueError with key, bound and value if a value is out of bounds.

    workers: number of workers, each on its own port. base_port: port of the first worker, the next ports for the
    others; 0: free ports. models: names of the base model; the first is its id, the others are aliases. adapters: names
    of LoRA adapters of that model. cache_blocks, block_tokens: size of each worker's KV cache. prefill_rate: tokens/s.
    itl_ms: time that decoding adds to a step. attention_cost: seconds per token per token of context, the quadratic
    term of prefill. step_overhead_ms: fixed time of a step. request_overhead_ms: delay from a request's arrival to the
    scheduler, besides the front end's work. request_work_ms: front-end work for each request, summed over requests that
    arrive together. tokenize_us_per_token: front-end work for each prompt token. max_num_batched_tokens: most tokens of
    a step. time_scale: virtual seconds per wall second.
    answers: "plain": ASCII words of one token each; "bytes": many characters of several bytes, which tokens split.
    stream_interval_ms (wall): tokens of a stream that come within this time share an event. With 0 the first token and
    each `tokens_per_event` tokens after it get an event; a request's `stream_interval` can raise that number.
    vocabulary: file that fleets in several processes share for the meaning of their token ids; empty: a process cannot
    read ids of another one.
    keepalive_s (wall): an idle connection is closed after this time. api_key: the bearer token of /v1/*, or None.
    poison: text that crashes the worker when a request's body contains it; empty: no text does.
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
