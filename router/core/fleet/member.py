"""One worker of the fleet, and one request in flight on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from router.core.fleet.capacity import LearntCapacity
from router.core.fleet.health import Health, WorkerState
from router.core.fleet.load import LoadReport
from router.core.fleet.patience import Work
from router.core.fleet.rates import PrefillTimes
from router.core.index.cache_use import CacheUse
from router.core.index.prefix_index import Recorded
from router.core.request.routes import Route
from router.core.worker import WorkerAddress, WorkerName

if TYPE_CHECKING:
    from router.core.fleet.fleet import Fleet

MAX_MODEL_LEN = 1 << 27
"""Tokens. A worker that reports a longer window is not believed."""

ModelCard = Mapping[str, Any]
"""One entry of a worker's /v1/models, reduced to a few short members."""


@dataclass(slots=True, eq=False)
class Member:
    """One worker of the fleet."""

    position: int
    address: WorkerAddress
    name: WorkerName
    health: Health
    prefills: PrefillTimes = field(default_factory=PrefillTimes)
    models: Mapping[str, ModelCard] = field(default_factory=dict)
    cache_blocks: int = 0
    """The size of its KV cache in blocks of the index, as the index last got it."""
    learnt_capacity: LearntCapacity | None = None
    """An estimate of its KV cache's size, while it reports none."""
    reports_cached: set[Route] = field(default_factory=set)
    """Routes on which it reported how many tokens of a prompt were cached."""
    unreported_hits: int = 0
    """Answers without a count of cached tokens although hits were expected, since it started."""
    lost_tokens: float = 0.0
    """The part of ``LoadReport.prefilling_tokens`` that seems to belong to aborted requests."""
    load: LoadReport | None = None
    load_at: float = 0.0
    work: Work = field(default_factory=Work)
    asleep_since: float | None = None
    """When its engine was first seen asleep; None while it is awake."""
    reuse: CacheUse = field(default_factory=CacheUse)
    last_answer_at: float = 0.0
    """When the worker last sent a first token: the next prefill began no earlier."""
    is_list_old: bool = False
    """Read its list of models again once it is healthy: it failed, restarted, or refused a model of its list."""
    last_error: str | None = None
    """The error in its answers to probes, bounded and printable; None while they are right."""
    removed: bool = False
    leases: set[Lease] = field(default_factory=set)

    def __repr__(self) -> str:
        return f"Member({self.name} {self.state.value} at {self.position}, {len(self.leases)} leases)"

    @property
    def state(self) -> WorkerState:
        return self.health.state if self.asleep_since is None else WorkerState.ASLEEP

    @property
    def since(self) -> float | None:
        """When the state began; None if that was not seen."""
        return self.health.since if self.asleep_since is None else self.asleep_since

    def max_model_len(self, model: str) -> int | None:
        """Tokens of a prompt and its answer together; None if the worker reports no such figure."""
        card = self.models.get(model, {})
        length = card.get("max_model_len")
        if length is None:  # an adapter has its base model's
            length = self.models.get(str(card.get("parent")), {}).get("max_model_len")
        is_sane = isinstance(length, int) and not isinstance(length, bool) and 0 < length <= MAX_MODEL_LEN
        return length if is_sane else None


class Lease:
    """One request in flight on one worker. A context, which ends after the last byte."""

    __slots__ = ("_fleet", "admitted_at", "answered", "member", "recorded", "service_s", "shows_first_token", "tokens")

    def __init__(self, fleet: Fleet, member: Member, tokens: float, now: float, shows_first_token: bool) -> None:
        self._fleet = fleet
        self.member = member
        self.tokens = tokens
        self.admitted_at = now
        self.shows_first_token = shows_first_token
        self.answered = False
        self.recorded: Recorded = (None, 0)
        """The blocks that the index recorded for this request."""
        self.service_s = 0.0
        """Seconds that the worker spent on this prefill alone, once the first token is back. 0.0 if it also waited for a
        seat."""

    def __repr__(self) -> str:
        return f"Lease({self.member.name}, {self.tokens:.0f} tokens{', answered' if self.answered else ''})"

    def on_first_token(self, now: float) -> None:
        """The prefill is done: its tokens no longer queue. Calling it again changes nothing."""
        if self.answered:
            return
        self.stop_queueing()
        member = self.member
        if member.load is None or not member.load.is_short_of_seats:
            self.service_s = now - max(member.last_answer_at, self.admitted_at)
        member.last_answer_at = now

    def stop_queueing(self) -> None:
        """Its prefill is done, or is taken to be. Call it once."""
        self.answered = True
        self._fleet.figures.queued_prefill_tokens[self.member.position] -= self.tokens
        self._fleet.notify_capacity(self.member)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._fleet.end(self)
