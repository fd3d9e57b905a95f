"""What happened to one request: filled in as it goes its way, read once after the last byte."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from router.core.request.routes import Route
from router.core.request.trace import Trace


class Resumption(NamedTuple):
    """One time that a stream broke: why; how it went on ("exact", "text", "finished") or why not ("unsafe", "failed"); and
    the seconds until it did."""

    cause: str
    outcome: str
    gap_s: float = 0.0


class Attempt(msgspec.Struct, gc=False):
    """One worker that was asked. ``failure``: its cause, such as "died"; empty while it answers, and where it answered.
    ``broke``: it failed within its stream."""

    worker: str
    failure: str = ""
    broke: bool = False


class Tally(Protocol):
    """Follows a stream."""

    def tokens(self, bytes_per_token: float) -> float:
        """Of the answer, as far as the client has it: counted by the worker, by its ids, or by its events and text."""
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
    """Of the time until the decision, how long it waited for room or for a worker."""
    status: int = 0
    worker: str = ""
    """The last that was asked, or whose stream the client has."""
    first_choice: str = ""
    """The worker that the newest ranking put first, for ``reason``; it is not asked where it has no seat."""
    reason: str = ""
    outcome: str = "pending"
    attempts: int = 0
    tried: list[Attempt] = msgspec.field(default_factory=list)
    """Those attempts in order, resumptions among them."""
    was_sent: bool = False
    """A worker has the prompt, and did not refuse it."""
    retries: list[str] = msgspec.field(default_factory=list)
    """The cause of each retry, in order."""
    resumptions: list[Resumption] = msgspec.field(default_factory=list)
    given_up: bool = False
    """Too many workers died under it."""
    prompt_tokens: int = 0
    """As the worker counted; 0 when it did not say."""
    completion_tokens: int = 0
    delivered_tokens: float = 0.0
    """Of a stream whose worker did not come to count: what the client was seen to get, about."""
    tally: Tally | None = None
    """Of the stream that is under way."""
    predicted_cached_tokens: float = 0.0
    actual_cached_tokens: int | None = None
    """None when the worker did not say: unknown is not zero."""
    trace: Trace | None = None
    """Where the request's spans are noted, while it is under way; None: nobody wants to see them."""
    chunks: int = 0
    bytes_out: int = 0

    def begin_attempt(self, worker: str) -> None:
        self.tried.append(Attempt(worker))
        self.attempts += 1

    def fail_attempt(self, cause: str, *, broke: bool = False) -> None:
        """The newest one."""
        self.tried[-1].failure, self.tried[-1].broke = cause, broke
