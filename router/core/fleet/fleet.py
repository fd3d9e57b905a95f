"""Which workers there are, and how busy each is: membership, leases, and the load that polls report.

A worker stands at a position of every list in ``Figures``. One that was removed keeps its position until its last lease has
ended. Which models are served is ``Catalog``; rates and sizes are ``Learning``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from router.core.fleet.catalog import Catalog
from router.core.fleet.figures import Figures
from router.core.fleet.health import Health, WorkerState
from router.core.fleet.learning import Learning
from router.core.fleet.load import LoadReport
from router.core.fleet.member import Lease, Member, ModelCard
from router.core.fleet.patience import Signs
from router.core.fleet.rules import FleetRules
from router.core.index.prefix_index import PrefixIndex
from router.core.worker import WorkerAddress, WorkerName

DRAIN_EVERY_S = 0.01
"""Least time between two drains of other routers' queues: each costs a pass over all workers."""

LOST_SHARE = 0.002
"""Share, per poll, of tokens that stay in prefill and then count as those of aborted requests."""


class OwnLoad(NamedTuple):
    """The part of a worker's load that is this router's."""

    in_flight: int
    queued_tokens: float


class Fleet:
    """All workers by position."""

    def __init__(
        self, rules: FleetRules, index: PrefixIndex, notify: Callable[[Member], None] = lambda _member: None
    ) -> None:
        """``notify`` is called after a worker's health changed."""
        self._notify = notify
        self._rules = rules
        self._index = index
        self._slots: list[Member | None] = []
        self._by_name: dict[WorkerName, Member] = {}
        self._returning: set[Member] = set()
        self._foreign_drained_at = 0.0
        self.on_capacity: Callable[[Member], None] | None = None
        """Called when a worker that is up may have new room; None while no request waits."""
        self.on_probe_ok: Callable[[Member], None] | None = None
        """Called when an ejected worker answers a probe before its time is over; None while no request waits."""
        self.figures = Figures()
        self.catalog = Catalog(self._by_name.values(), rules.declared_models)
        self.learning = Learning(rules, self.figures, self.catalog, index)

    def __repr__(self) -> str:
        return f"Fleet({', '.join(f'{member.name} {member.state.value}' for member in self.members())})"

    # --- membership

    def set_members(self, addresses: Iterable[WorkerAddress]) -> tuple[list[Member], list[Member]]:
        """Make the fleet consist of ``addresses``; returns the members that came and those that left."""
        wanted = {address.name: address for address in addresses}
        left = [member for name, member in self._by_name.items() if name not in wanted]
        for member in left:
            self._remove(member)
        came = [self._add(address) for name, address in wanted.items() if name not in self._by_name]
        if came or left:
            self.catalog.forget_lists()
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
            self.figures.grow()
        member = Member(position, address, address.name, Health(self._rules.health))
        self._slots[position] = self._by_name[member.name] = member
        self.learning.add(member)
        return member

    def _remove(self, member: Member) -> None:
        member.removed = True
        del self._by_name[member.name]
        self._returning.discard(member)
        self.learning.remove(member)
        if not member.leases:
            self._free(member)

    def _free(self, member: Member) -> None:
        self._slots[member.position] = None
        self._index.remove(member.position)

    # --- models and health

    def set_models(self, member: Member, models: Mapping[str, ModelCard]) -> None:
        """The member lists these now."""
        member.is_list_old = False
        if models != member.models:
            member.models = models
            self.catalog.forget_lists()
            for model in self.catalog.remember(models):
                self.learning.forget(model)
            self.notify_capacity(member)

    def disown(self, member: Member, model: str) -> None:
        """The member answered that it does not serve a model of its list. It is not tried for the model until its list is read
        again."""
        self.set_models(member, {name: card for name, card in member.models.items() if name != model})
        member.is_list_old = True

    def notify_capacity(self, member: Member) -> None:
        """The member sent a first token, ended a request, reported its load, serves other models, or came up."""
        if self.on_capacity is not None and member.state is WorkerState.UP:
            self.on_capacity(member)

    def on_alive(self, member: Member) -> None:
        """The member answered a probe while it is ejected."""
        if self.on_probe_ok is not None:
            self.on_probe_ok(member)

    def on_health_changed(self, member: Member) -> None:
        """Call it when a health method of the member returned True, or when the member fell asleep or woke."""
        self.catalog.forget_states()
        if member.health.returned_at is not None and not member.removed:
            self._returning.add(member)
        self._notify(member)
        self.notify_capacity(member)

    def refresh_slowdowns(self, now: float) -> None:
        """Costs something only for workers that came back lately."""
        if not self._returning:
            return
        for member in tuple(self._returning):
            self.figures.slowdown[member.position] = member.health.slowdown(now)
            if member.health.returned_at is None:
                self._returning.discard(member)

    # --- leases

    def lease(self, position: int, uncached_tokens: float, now: float, *, shows_first_token: bool) -> Lease:
        """``shows_first_token``: the reply is streamed, which shows the end of its prefill."""
        member = self.member(position)
        lease = Lease(self, member, uncached_tokens, now, shows_first_token)
        member.leases.add(lease)
        member.reuse.requests += 1
        self.figures.in_flight[position] += 1
        self.figures.queued_prefill_tokens[position] += uncached_tokens
        return lease

    def end(self, lease: Lease) -> None:
        """Called by the lease itself."""
        member = lease.member
        if lease not in member.leases:
            return
        member.leases.remove(lease)
        position = member.position
        self.figures.in_flight[position] -= 1
        if not lease.answered:
            self.figures.queued_prefill_tokens[position] -= lease.tokens
        if not member.leases:
            self.figures.queued_prefill_tokens[position] = 0.0  # what rounding left
            if member.removed:
                self._free(member)
        self.notify_capacity(member)

    # --- polled load

    def own_load(self, member: Member) -> OwnLoad:
        """Take it before a worker is asked for its load: requests come and go until the answer is here."""
        return OwnLoad(len(member.leases), self.figures.queued_prefill_tokens[member.position])

    def on_load(self, member: Member, report: LoadReport, asked: OwnLoad, now: float) -> bool:
        """Take in a report; returns True if the worker is another process than before.

        Our part of it is the larger of our load when the worker was ``asked`` and now: it is better to overlook another
        router's request than to count our own as foreign.
        """
        restarted = member.load is not None and report.is_after_restart(member.load)
        member.load, member.load_at = report, now
        if restarted:
            self._index.clear(member.position)
            member.lost_tokens = 0.0
            member.is_list_old = True
            member.reports_cached.clear()
            member.unreported_hits = 0
        if report.is_asleep != (member.asleep_since is not None):
            self._on_sleep(member, report.is_asleep, now)
        self.learning.follow_capacity(member)
        self._settle_unstreamed(member, report, now)
        position = member.position
        here = self.own_load(member)
        ours = max(asked.in_flight, here.in_flight)
        foreign = max(0, report.running + report.waiting - ours)
        self.figures.foreign_in_flight[position] = foreign
        # Again the larger of the two, and no queue without a request.
        queued = self._prefilling(member, report) + report.waiting * self.learning.mean_uncached_tokens
        foreign_queued = max(0.0, queued - max(asked.queued_tokens, here.queued_tokens))
        self.figures.foreign_prefill_tokens[position] = foreign_queued if foreign else 0.0
        self.notify_capacity(member)
        return restarted

    def _on_sleep(self, member: Member, is_asleep: bool, now: float) -> None:
        """The member fell asleep, or woke. Sleep empties its cache, so blocks that were recorded meanwhile are lost, too. A
        member that woke is alive, although requests that it slept through may have failed."""
        member.asleep_since = now if is_asleep else None
        self._index.clear(member.position)
        member.lost_tokens = 0.0
        if not is_asleep:
            member.health.on_success(now)
        self.on_health_changed(member)

    def _prefilling(self, member: Member, report: LoadReport) -> float:
        """Tokens being prefilled. Aborted requests leave their tokens in the worker's sums for ever, so tokens that stay there
        for long are left out."""
        here = report.prefilling_tokens or 0.0
        member.lost_tokens = min(here, member.lost_tokens + LOST_SHARE * (here - member.lost_tokens))
        return here - member.lost_tokens

    def signs(self, address: WorkerAddress, now: float) -> Signs | None:
        """Signs of work in the worker's polls; None if its last poll is too old, or it left."""
        member = self._by_name.get(address.name)
        return None if member is None else member.work.signs(now, self._rules.stale_load_s)

    def drain_foreign(self, now: float) -> None:
        """Between polls, other routers' queues get shorter, too: by their share of what the worker prefilled since."""
        since = self._foreign_drained_at
        if now - since < DRAIN_EVERY_S:
            return
        self._foreign_drained_at = now
        for member in self._by_name.values():
            position = member.position
            foreign = self.figures.foreign_prefill_tokens[position]
            if foreign > 0.0:
                share = foreign / (foreign + max(self.figures.queued_prefill_tokens[position], 0.0))
                elapsed_s = now - max(since, member.load_at)
                drained = elapsed_s / self.figures.seconds_per_token[position] * share
                self.figures.foreign_prefill_tokens[position] = max(0.0, foreign - drained)

    def expire_load(self, member: Member, now: float) -> None:
        """After a report that is too old, foreign load counts as none (fail open)."""
        if now - member.load_at > self._rules.stale_load_s:
            self.figures.clear_foreign(member.position)
            self.notify_capacity(member)

    def _settle_unstreamed(self, member: Member, report: LoadReport, now: float) -> None:
        """A reply that is not streamed shows no first token. Once no request waits at the worker, its prefill is under way or
        done: it counts as done when its expected time has passed."""
        if report.waiting:
            return
        seconds_per_token = self.figures.seconds_per_token[member.position]
        for lease in member.leases:
            if (
                not (lease.answered or lease.shows_first_token)
                and now - lease.admitted_at > lease.tokens * seconds_per_token
            ):
                lease.stop_queueing()
