"""The record of one request: filled in while it is served, read once after the last byte."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from router.core.request.attempt import Failure
from router.core.request.routes import Route
from router.core.request.trace import Trace


class ResumptionOutcome(StrEnum):
    """How a broken stream went on, or why not: a label of the resumption counter."""

    EXACT = "exact"
    TEXT = "text"
    FINISHED = "finished"
    UNSAFE = "unsafe"
    FAILED = "failed"


class Resumption(NamedTuple):
    """One break of a stream. ``gap_s``: seconds until it went on."""

    cause: Failure
    outcome: ResumptionOutcome
    gap_s: float = 0.0


class Attempt(msgspec.Struct, gc=False):
    """One worker that was asked. ``failure``: the cause, such as "died"; empty if it has not failed. ``broke``: it failed
    within its stream."""

    worker: str
    failure: str = ""
    broke: bool = False


class Tally(Protocol):
    """Counts the tokens of a stream."""

    def tokens(self, bytes_per_token: float) -> float:
        """Tokens of the answer that the client has: counted by the worker, by its ids, or by its events and text."""
        ...


class Record(msgspec.Struct, kw_only=True):
    """Times are seconds on the router's monotonic clock; 0.0 means that it has not happened."""

    route: Route
    model: str
    policy: str
    request_id: str
    stream: bool
    started_at: float
    decided_at: float = 0.0
    first_byte_at: float = 0.0
    ended_at: float = 0.0
    queued_s: float = 0.0
    """How long it waited for room or for a worker, before the decision."""
    status: int = 0
    worker: str = ""
    """The worker that was asked last, or whose stream the client has."""
    first_choice: str = ""
    """The worker that the newest ranking put first, for ``reason``; it is not asked where it has no seat."""
    reason: str = ""
    outcome: str = "pending"
    attempts: int = 0
    tried: list[Attempt] = msgspec.field(default_factory=list)
    """All attempts in order, resumptions included."""
    was_sent: bool = False
    """A worker got the prompt, and did not refuse it."""
    retries: list[str] = msgspec.field(default_factory=list)
    """The cause of each retry, in order."""
    resumptions: list[Resumption] = msgspec.field(default_factory=list)
    given_up: bool = False
    """Too many workers died while they served it."""
    prompt_tokens: int = 0
    """As the worker counted; 0: it did not."""
    completion_tokens: int = 0
    delivered_tokens: float = 0.0
    """An estimate of the tokens that the client got, if the worker did not count them."""
    tally: Tally | None = None
    """Counts the stream under way."""
    predicted_cached_tokens: float = 0.0
    actual_cached_tokens: int | None = None
    """None if the worker reported no count: unknown is not zero."""
    trace: Trace | None = None
    """The request's trace while it is under way; None: it is not sampled."""
    chunks: int = 0

    def begin_attempt(self, worker: str) -> None:
        self.tried.append(Attempt(worker))
        self.attempts += 1

    def fail_attempt(self, cause: str, *, broke: bool = False) -> None:
        """The newest attempt failed."""
        self.tried[-1].failure, self.tried[-1].broke = cause, broke
