"""The admin port's answers, as far as a terminal shows them. An answer of another shape is refused as a whole."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

from msgspec import Meta

Number = Annotated[int, Meta(ge=-(2**53), le=2**53)] | float


class Worker(TypedDict):
    name: str
    url: str
    state: str
    since: NotRequired[str | None]
    """The time when the state began."""
    last_error: NotRequired[str | None]
    """The cause of its failed probes."""
    in_flight: Number
    queued_prefill_tokens: Number
    prefill_rate: Number
    index_blocks: Number
    max_blocks: Number
    prompt_tokens: Number
    cached_tokens: Number


class Attempt(TypedDict):
    worker: str
    failure: str
    broke: bool


class Resumption(TypedDict):
    cause: str
    outcome: str
    gap_s: Number


class Decision(TypedDict):
    request_id: str
    route: str
    model: str
    stream: bool
    worker: str
    first_choice: str
    policy: str
    reason: str
    status: Number
    outcome: str
    tried: list[Attempt]
    given_up: bool
    resumptions: list[Resumption]
    queued_s: Number
    prompt_tokens: Number
    predicted_cached_tokens: Number
    actual_cached_tokens: Number | None
    decide_s: Number
    time_to_first_token_s: Number
    duration_s: Number


class Sessions(TypedDict):
    turns: Number
    store_up: bool


class Snapshot(TypedDict):
    version: str
    policy: str
    workers: list[Worker]
    decisions: list[Decision]
    live_requests: Number
    queued: Number
    saved_prefill_s: Number
    sessions: Sessions | None
    history: list[tuple[Number, Number, Number, Number]]
    """Samples: Unix time, then token sums of prompts, predicted hits and actual hits."""
