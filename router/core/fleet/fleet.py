"""Who the workers are, what each may serve, and how busy each is. Decides who may be tried; never who is best.

Workers stand at positions. Every figure that policies read lies in a list by position, kept up to date as leases come
and go, so that a decision copies nothing. A removed worker keeps its position until its last lease has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from router.core.errors import ModelNotFound, ModelUnavailable, NoWorkerAvailable
from router.core.fleet.capacity import LearntCapacity
from router.core.fleet.facts import FleetView
from router.core.fleet.health import Health, HealthRules, WorkerState
from router.core.fleet.load import LoadReport
from router.core.fleet.patience import Signs, Work
from router.core.fleet.rates import DecayedRatio, PrefillTimes, believed
from router.core.index.cache_use import CacheUse
from router.core.index.fingerprint import BLOCK_BYTES
from router.core.index.prefix_index import Recorded
from router.core.request.routes import Route
from router.core.worker import WorkerAddress, WorkerName

OWN_SAMPLES = 10.0
"""With more than so many (decayed) samples, a worker's rate is its own and no longer follows the fleet's."""

MIN_BYTES_PER_TOKEN, MAX_BYTES_PER_TOKEN = 0.5, 64.0
"""A prompt beyond these is not text, or badly counted: an image says nothing of how a tokenizer cuts."""

BELIEVED_TOKENS = 256.0
"""What the bytes per token that configuration names weigh against the first that are seen."""

DRAIN_EVERY_S = 0.01
"""How finely others' queues are drained between polls; with many workers each time costs a pass over all."""

LOST_SHARE = 0.002
"""How fast, per poll, tokens that stay in prefill are taken for those of aborted requests."""

CAPACITY_STEP = 0.02
"""A cache's size in index blocks follows the learnt bytes per token; smaller changes than this are not worth the work."""

MAX_KNOWN_MODELS = 10_000
"""Names that are remembered, beyond those that are served now."""

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
        self._fleet.queued_prefill_tokens[self.member.position] -= self.tokens
        self._fleet.notify_capacity(self.member)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._fleet.end(self)


@dataclass(frozen=True, slots=True)
class Eligible:
    """Who may be tried for a model. ``panic``: all of them are ejected, and are tried since nobody else is there."""

    positions: Sequence[int]
    panic: bool


class OwnLoad(NamedTuple):
    """What of a worker's load is this router's."""

    in_flight: int
    queued_tokens: float


class Holdings(Protocol):
    """What remembers which prefixes each worker holds; the fleet tells it who is there and how large their caches are."""

    def add(self, position: int, capacity_blocks: int | None = None) -> None: ...

    def remove(self, position: int) -> None: ...

    def resize(self, position: int, capacity_blocks: int) -> None: ...

    def clear(self, position: int) -> None: ...


@dataclass(frozen=True, slots=True)
class FleetRules:
    """What the fleet starts from: rates in tokens/s, ages in s."""

    health: HealthRules
    initial_prefill_rate: float
    initial_bytes_per_token: float
    stale_load_s: float
    default_cache_tokens: int
    declared_models: frozenset[str] = frozenset()
    """Models that exist, whether or not a worker lists them."""


class Fleet:
    """All workers by position, and the figures that policies read."""

    def __init__(
        self, rules: FleetRules, holdings: Holdings, notify: Callable[[Member], None] = lambda _member: None
    ) -> None:
        """``notify`` is called after a worker's health changed."""
        self._notify = notify
        self._rules = rules
        self._holdings = holdings
        self._slots: list[Member | None] = []
        self._by_name: dict[WorkerName, Member] = {}
        self._eligible: dict[str, Eligible] = {}
        self._windows: dict[str, int] = {}
        self._known_models: dict[str, None] = {}
        """Names that some worker listed, the newest last."""
        self._served: dict[str, ModelCard] | None = None
        self._bytes_per_token: dict[str, DecayedRatio] = {}
        self._returning: set[Member] = set()
        self._prefills = believed(rules.initial_prefill_rate)
        self._unproven: set[Member] = set()
        self._mean_uncached_tokens = 1000.0
        """Of the requests that this router saw: what one that it did not see is likely to queue."""
        self._foreign_drained_at = 0.0
        self.on_capacity: Callable[[Member], None] | None = None
        """Called when a worker that is up may have room that it had not before; None while nobody waits for any."""
        self.on_probe_ok: Callable[[Member], None] | None = None
        """Called when an ejected worker answers a probe all the same; None likewise."""
        self.names: list[WorkerName] = []
        self.in_flight: list[int] = []
        self.foreign_in_flight: list[int] = []
        self.queued_prefill_tokens: list[float] = []
        self.foreign_prefill_tokens: list[float] = []
        self.seconds_per_token: list[float] = []
        self.slowdown: list[float] = []
        self.view = FleetView(
            names=self.names,
            in_flight=self.in_flight,
            foreign_in_flight=self.foreign_in_flight,
            queued_prefill_tokens=self.queued_prefill_tokens,
            foreign_prefill_tokens=self.foreign_prefill_tokens,
            seconds_per_token=self.seconds_per_token,
            slowdown=self.slowdown,
        )

    # --- membership

    def set_members(self, addresses: Iterable[WorkerAddress]) -> tuple[list[Member], list[Member]]:
        """Make the fleet consist of ``addresses``; returns who came and who left."""
        wanted = {address.name: address for address in addresses}
        left = [member for name, member in self._by_name.items() if name not in wanted]
        for member in left:
            self._remove(member)
        came = [self._add(address) for name, address in wanted.items() if name not in self._by_name]
        if came or left:
            self._forget_who_serves()
        return came, left

    def members(self) -> Iterator[Member]:
        return iter(self._by_name.values())

    def member(self, position: int) -> Member:
        member = self._slots[position]
        if member is None:
            raise KeyError(position)
        return member

    def position_of(self, name: WorkerName) -> int | None:
        member = self._by_name.get(name)
        return None if member is None else member.position

    def __len__(self) -> int:
        return len(self._by_name)

    def _add(self, address: WorkerAddress) -> Member:
        try:
            position = self._slots.index(None)
        except ValueError:
            position = len(self._slots)
            self._slots.append(None)
            self.names.append(WorkerName(""))
            self.in_flight.append(0)
            self.foreign_in_flight.append(0)
            self.queued_prefill_tokens.append(0.0)
            self.foreign_prefill_tokens.append(0.0)
            self.seconds_per_token.append(0.0)
            self.slowdown.append(1.0)
        member = Member(position, address, address.name, Health(self._rules.health))
        self._slots[position] = self._by_name[member.name] = member
        self._unproven.add(member)
        self.names[position] = member.name
        self.in_flight[position] = self.foreign_in_flight[position] = 0
        self.queued_prefill_tokens[position] = self.foreign_prefill_tokens[position] = 0.0
        self.seconds_per_token[position] = member.prefills.seconds_per_token(self._prefills)
        self.slowdown[position] = 1.0
        member.cache_blocks = self._capacity_blocks(member)
        self._holdings.add(position, member.cache_blocks)
        return member

    def _remove(self, member: Member) -> None:
        member.removed = True
        del self._by_name[member.name]
        self._returning.discard(member)
        self._unproven.discard(member)
        if not member.leases:
            self._free(member)

    def _free(self, member: Member) -> None:
        self._slots[member.position] = None
        self._holdings.remove(member.position)

    # --- who may be tried

    def eligible(self, model: str) -> Eligible:
        """Raises ModelNotFound, ModelUnavailable, NoWorkerAvailable."""
        found = self._eligible.get(model)
        if found is None:
            found = self._find_eligible(model)
        if not found.positions:
            if self.knows(model):
                raise ModelUnavailable(f"no worker serves the model {model!r} at the moment", retry_after_s=2)
            if not self._known_models:
                raise NoWorkerAvailable("no worker has come up yet", retry_after_s=1)
            if not all(member.models for member in self._by_name.values()):
                text = f"no worker that is up serves the model {model!r}, and others have not come up yet"
                raise ModelUnavailable(text, retry_after_s=2)
            raise ModelNotFound.of(model)
        self._eligible[model] = found  # names that clients make up are never kept
        return found

    def _find_eligible(self, model: str) -> Eligible:
        awake = (member for member in self._by_name.values() if member.state is not WorkerState.ASLEEP)
        serving = [member for member in awake if model in member.models]
        up = sorted(member.position for member in serving if member.state is WorkerState.UP)
        return Eligible(up or sorted(member.position for member in serving), panic=not up)

    def serves(self, model: str) -> bool:
        """True if some worker lists it now."""
        return any(model in member.models for member in self._by_name.values())

    def is_ready(self) -> bool:
        return any(member.models and member.state is WorkerState.UP for member in self._by_name.values())

    def knows(self, model: str) -> bool:
        """True if some worker ever listed it, or the configuration declares it."""
        return model in self._known_models or model in self._rules.declared_models

    def served_models(self) -> dict[str, ModelCard]:
        """By name, in order; a model of several workers with the card of the first."""
        if self._served is None:
            cards: dict[str, ModelCard] = {}
            for member in self._by_name.values():
                for model, card in member.models.items():
                    cards.setdefault(model, card)
            self._served = dict(sorted(cards.items()))
        return self._served

    def set_models(self, member: Member, models: Mapping[str, ModelCard]) -> None:
        """The member lists these now."""
        member.is_list_old = False
        if models != member.models:
            member.models = models
            self._forget_who_serves()
            self._remember(models)
            self.notify_capacity(member)

    def disown(self, member: Member, model: str) -> None:
        """The member says that it does not serve a model of its list: until the list is read again, it is not tried for it."""
        self.set_models(member, {name: card for name, card in member.models.items() if name != model})
        member.is_list_old = True

    def _forget_who_serves(self) -> None:
        self._eligible.clear()
        self._windows.clear()
        self._served = None

    def _remember(self, models: Iterable[str]) -> None:
        """Names, of which a broken worker may list others at each look: beyond the bound those go that nobody serves, the
        oldest first, and what was learnt of them."""
        for model in models:
            self._known_models.pop(model, None)
            self._known_models[model] = None
        if (surplus := len(self._known_models) - MAX_KNOWN_MODELS) <= 0:
            return
        served = self.served_models()
        for model in [model for model in self._known_models if model not in served][:surplus]:
            del self._known_models[model]
            self._bytes_per_token.pop(model, None)

    @property
    def known_models(self) -> int:
        """How many names are remembered."""
        return len(self._known_models)

    def notify_capacity(self, member: Member) -> None:
        """It gave a first token, ended a request, said how busy it is, serves other models, or came up."""
        if self.on_capacity is not None and member.state is WorkerState.UP:
            self.on_capacity(member)

    def on_alive(self, member: Member) -> None:
        """It answered a probe while it was ejected, and its time is not over."""
        if self.on_probe_ok is not None:
            self.on_probe_ok(member)

    def on_health_changed(self, member: Member) -> None:
        """To be called when one of the member's health methods returned True, or it fell asleep or woke."""
        self._eligible.clear()
        self._windows.clear()
        if member.health.returned_at is not None and not member.removed:
            self._returning.add(member)
        self._notify(member)
        self.notify_capacity(member)

    def refresh_slowdowns(self, now: float) -> None:
        """Only workers that came back lately cost anything here."""
        if not self._returning:
            return
        for member in tuple(self._returning):
            self.slowdown[member.position] = member.health.slowdown(now)
            if member.health.returned_at is None:
                self._returning.discard(member)

    # --- leases

    def lease(self, position: int, uncached_tokens: float, now: float, *, shows_first_token: bool) -> Lease:
        """``shows_first_token``: the reply is streamed, so that the end of its prefill will be seen."""
        member = self.member(position)
        lease = Lease(self, member, uncached_tokens, now, shows_first_token)
        member.leases.add(lease)
        member.reuse.requests += 1
        self.in_flight[position] += 1
        self.queued_prefill_tokens[position] += uncached_tokens
        return lease

    def end(self, lease: Lease) -> None:
        """Called by the lease itself."""
        member = lease.member
        if lease not in member.leases:
            return
        member.leases.remove(lease)
        position = member.position
        self.in_flight[position] -= 1
        if not lease.answered:
            self.queued_prefill_tokens[position] -= lease.tokens
        if not member.leases:
            self.queued_prefill_tokens[position] = 0.0  # what rounding left
            if member.removed:
                self._free(member)
        self.notify_capacity(member)

    def learn_rate(self, lease: Lease, uncached_tokens: float) -> None:
        """How fast the worker prefilled, from what it really computed and the time it had for it.

        Workers that have shown little of their own are taken for the fleet's mean, and so follow it.
        """
        self._mean_uncached_tokens += 0.05 * (max(uncached_tokens, 0.0) - self._mean_uncached_tokens)
        if uncached_tokens <= 0 or lease.service_s <= 0 or lease.member.removed:
            return
        lease.member.prefills.add(uncached_tokens, lease.service_s)
        self._prefills.add(uncached_tokens, lease.service_s)
        if lease.member.prefills.samples > OWN_SAMPLES:
            self._unproven.discard(lease.member)
        for member in (lease.member, *self._unproven):
            self.seconds_per_token[member.position] = member.prefills.seconds_per_token(self._prefills)

    def window(self, model: str) -> int:
        """Tokens of a prompt and its answer together, by the workers that may be tried for the model; 0: none says. The upper
        median of what they say: where most agree, one that is wrong changes nothing for requests that go to others, and of
        two that differ the larger counts, since a prompt that fits there is not to be refused or cut."""
        if (found := self._windows.get(model)) is not None:
            return found
        serving = [self.member(position) for position in self._find_eligible(model).positions]
        lengths = sorted(length for member in serving if (length := member.max_model_len(model)))
        window = lengths[len(lengths) // 2] if lengths else 0
        if serving:  # names that clients make up are never kept
            self._windows[model] = window
        return window

    def bytes_per_token(self, model: str) -> float:
        """Prompt bytes per token, as the model's tokenizer was seen to make them."""
        ratio = self._bytes_per_token.get(model)
        return self._rules.initial_bytes_per_token if ratio is None else ratio.value

    def learn_bytes_per_token(self, model: str, prompt_bytes: int, prompt_tokens: int) -> None:
        if not MIN_BYTES_PER_TOKEN * prompt_tokens <= prompt_bytes <= MAX_BYTES_PER_TOKEN * prompt_tokens:
            return
        ratio = self._bytes_per_token.get(model)
        if ratio is None:
            if model not in self._known_models:
                return
            ratio = DecayedRatio(self._rules.initial_bytes_per_token * BELIEVED_TOKENS, BELIEVED_TOKENS)
            self._bytes_per_token[model] = ratio
        ratio.add(prompt_bytes, prompt_tokens)

    def _capacity_blocks(self, member: Member) -> int:
        reported = member.load.cache_tokens if member.load else None
        if reported is None and member.learnt_capacity is not None:
            return max(1, int(member.learnt_capacity.blocks))
        tokens = self._rules.default_cache_tokens if reported is None else reported
        ratios = [self.bytes_per_token(model) for model in member.models]
        mean = sum(ratios) / len(ratios) if ratios else self._rules.initial_bytes_per_token
        return max(1, int(tokens * mean / BLOCK_BYTES))

    def learns_capacity(self, member: Member) -> bool:
        """True where the worker does not say how large its cache is."""
        return not member.removed and (member.load is None or member.load.cache_tokens is None)

    def learn_capacity(self, member: Member, age_blocks: float, *, was_held: bool) -> None:
        """Of a worker that ``learns_capacity``: a prompt was held, or gone although it was expected. ``age_blocks``: those that
        were used on the worker since the prompt was."""
        if member.learnt_capacity is None:
            member.learnt_capacity = LearntCapacity(member.cache_blocks)
        if was_held:
            member.learnt_capacity.on_held(age_blocks)
        else:
            member.learnt_capacity.on_gone(age_blocks)
        self._follow_capacity(member)

    def _follow_capacity(self, member: Member) -> None:
        blocks = self._capacity_blocks(member)
        if abs(blocks - member.cache_blocks) > member.cache_blocks * CAPACITY_STEP:
            member.cache_blocks = blocks
            self._holdings.resize(member.position, blocks)

    # --- polled load

    def own_load(self, member: Member) -> OwnLoad:
        """To be taken before a worker is asked for its load: requests come and go while the answer is under way."""
        return OwnLoad(len(member.leases), self.queued_prefill_tokens[member.position])

    def on_load(self, member: Member, report: LoadReport, asked: OwnLoad, now: float) -> bool:
        """Take in a report; returns True if the worker is another process than before.

        What is ours of it is the larger of what was ours when the worker was ``asked``, and now: rather overlook
        another router's request than take one of our own for it.
        """
        restarted = member.load is not None and report.is_after_restart(member.load)
        member.load, member.load_at = report, now
        if restarted:
            self._holdings.clear(member.position)
            member.lost_tokens = 0.0
            member.is_list_old = True
            member.tells_cached.clear()
            member.untold_hits = 0
        if report.is_asleep != (member.asleep_since is not None):
            self._on_sleep(member, report.is_asleep, now)
        self._follow_capacity(member)
        self._settle_unstreamed(member, report, now)
        position = member.position
        here = self.own_load(member)
        ours = max(asked.in_flight, here.in_flight)
        foreign = max(0, report.running + report.waiting - ours)
        self.foreign_in_flight[position] = foreign
        # The larger of the two again; and no queue without a request.
        queued = self._prefilling(member, report) + report.waiting * self._mean_uncached_tokens
        foreign_queued = max(0.0, queued - max(asked.queued_tokens, here.queued_tokens))
        self.foreign_prefill_tokens[position] = foreign_queued if foreign else 0.0
        self.notify_capacity(member)
        return restarted

    def _on_sleep(self, member: Member, is_asleep: bool, now: float) -> None:
        """It fell asleep, or woke. Sleep empties its cache; what was noted of it meanwhile ended before, and is lost, too. One
        that woke is alive, whatever became of requests that it slept through."""
        member.asleep_since = now if is_asleep else None
        self._holdings.clear(member.position)
        member.lost_tokens = 0.0
        if not is_asleep:
            member.health.on_success(now)
        self.on_health_changed(member)

    def _prefilling(self, member: Member, report: LoadReport) -> float:
        """Tokens being prefilled. Requests that are aborted leave theirs in the worker's sums for ever, so what stays
        there for long is taken for such, and left out."""
        here = report.prefilling_tokens or 0.0
        member.lost_tokens = min(here, member.lost_tokens + LOST_SHARE * (here - member.lost_tokens))
        return here - member.lost_tokens

    def signs(self, address: WorkerAddress, now: float) -> Signs | None:
        """Of work there, as its polls show it; None where its last poll is not to be believed any more, or it left."""
        member = self._by_name.get(address.name)
        return None if member is None else member.work.signs(now, self._rules.stale_load_s)

    def drain_foreign(self, now: float) -> None:
        """Between polls others' queues get shorter too: by what the worker prefilled since, shared with our own."""
        since = self._foreign_drained_at
        if now - since < DRAIN_EVERY_S:
            return
        self._foreign_drained_at = now
        for member in self._by_name.values():
            position = member.position
            foreign = self.foreign_prefill_tokens[position]
            if foreign > 0.0:
                share = foreign / (foreign + max(self.queued_prefill_tokens[position], 0.0))
                elapsed_s = now - max(since, member.load_at)
                drained = elapsed_s / self.seconds_per_token[position] * share
                self.foreign_prefill_tokens[position] = max(0.0, foreign - drained)

    def expire_load(self, member: Member, now: float) -> None:
        """A report that is too old says nothing of now: others' load counts as none (fail open)."""
        if now - member.load_at > self._rules.stale_load_s:
            self.foreign_in_flight[member.position] = 0
            self.foreign_prefill_tokens[member.position] = 0.0
            self.notify_capacity(member)

    def _settle_unstreamed(self, member: Member, report: LoadReport, now: float) -> None:
        """A reply that is not streamed shows no first token. Once nothing waits there, its prefill is under way or
        done: count it as done when its expected time has passed."""
        if report.waiting:
            return
        seconds_per_token = self.seconds_per_token[member.position]
        for lease in member.leases:
            if (
                not (lease.answered or lease.shows_first_token)
                and now - lease.admitted_at > lease.tokens * seconds_per_token
            ):
                lease.stop_queueing()
