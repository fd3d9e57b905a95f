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
"""Tokens; no worker that says more is believed."""

ModelCard = Mapping[str, Any]
"""One entry of a worker's /v1/models: of what it wrote, a few short members."""


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
    """Its KV cache in blocks of the index, as last told to the index."""
    learnt_capacity: LearntCapacity | None = None
    """What is learnt of its KV cache while it does not say how large it is."""
    tells_cached: set[Route] = field(default_factory=set)
    """Routes on which it told how much of a prompt was cached."""
    untold_hits: int = 0
    """Answers without that count although hits were expected, since it started."""
    lost_tokens: float = 0.0
    """Of ``LoadReport.prefilling_tokens``, what seems to belong to requests that were aborted."""
    load: LoadReport | None = None
    load_at: float = 0.0
    work: Work = field(default_factory=Work)
    asleep_since: float | None = None
    """When its engine was first seen asleep; None while it is awake."""
    reuse: CacheUse = field(default_factory=CacheUse)
    last_answer_at: float = 0.0
    """When the worker last gave a first token: the prefill after it began no earlier."""
    is_list_old: bool = False
    """Its list of models is to be read again as soon as it is healthy: it failed, restarted, or refused a model of its list."""
    last_error: str | None = None
    """What is wrong with the worker's answers to probes, bounded and printable; None while they are right."""
    removed: bool = False
    leases: set[Lease] = field(default_factory=set)

    @property
    def state(self) -> WorkerState:
        return self.health.state if self.asleep_since is None else WorkerState.ASLEEP

    @property
    def since(self) -> float | None:
        """When the state began, as far as it was seen."""
        return self.health.since if self.asleep_since is None else self.asleep_since

    def max_model_len(self, model: str) -> int | None:
        """Tokens of a prompt and its answer together, if the worker says."""
        card = self.models.get(model, {})
        length = card.get("max_model_len")
        if length is None:  # an adapter has its base model's
            length = self.models.get(str(card.get("parent")), {}).get("max_model_len")
        is_sane = isinstance(length, int) and not isinstance(length, bool) and 0 < length <= MAX_MODEL_LEN
        return length if is_sane else None


class Lease:
    """One request in flight on one worker; ends when the ``with`` block does, after the last byte."""

    __slots__ = ("_fleet", "admitted_at", "answered", "member", "recorded", "service_s", "shows_first_token", "tokens")

    def __init__(self, fleet: Fleet, member: Member, tokens: float, now: float, shows_first_token: bool) -> None:
        self._fleet = fleet
        self.member = member
        self.tokens = tokens
        self.admitted_at = now
        self.shows_first_token = shows_first_token
        self.answered = False
        self.recorded: Recorded = (None, 0)
        """What the index was told of this request."""
        self.service_s = 0.0
        """Seconds that the worker spent on this prefill alone, once the first token is back.
        0.0 where it also had to wait for a seat."""

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
        """Once: its prefill is done, or taken to be."""
        self.answered = True
        self._fleet.figures.queued_prefill_tokens[self.member.position] -= self.tokens
        self._fleet.notify_capacity(self.member)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._fleet.end(self)
