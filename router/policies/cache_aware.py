"""The worker with the least expected time to first token: the default policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import add, mul
from typing import Annotated

from msgspec import Meta, Struct

from router.core.fleet.facts import Facts
from router.core.index.prefix_index import positions_of
from router.policies.base import Ranking
from router.policies.ring_order import take_eligible

RATE_BAND = 1.25
"""Learnt rates that differ by a smaller factor count as equal. Otherwise measurement noise would favour one worker at each
decision, and give it the load and the cache churn of two."""
REQUEST_TOKENS = 100.0
"""Cost of each request in flight beyond its prefill: it takes a slot and a share of every step."""
CROWD_TOKENS = 400.0
"""Additional cost of requests above the fleet's mean; it grows with the distance."""


Chance = Annotated[float, Meta(ge=0, le=1)]


class CacheAwareParameters(Struct, frozen=True):
    miss_weight: Annotated[float, Meta(ge=0, le=100, description="cache_aware: what an uncached token costs, λ.")] = 6.0
    prior: Annotated[
        tuple[Chance, Chance],
        Meta(description="cache_aware: chance that the ring's first two workers hold earlier turns, p."),
    ] = (0.9, 0.3)
    leave_weight: Annotated[
        float, Meta(ge=0, le=100, description="cache_aware: cost of leaving the ring's first, μ.")
    ] = 0.3
    alone: Annotated[bool, Meta(description="This is the only router: the ring says nothing about others.")] = False


class CacheAware:
    """Ascending by expected time to first token, plus the cost of the choice for later requests.

    Formula, in prefill tokens, then times the worker's pace::

        cost(w) = queued(w) + foreign_queued(w) + miss(w) + crowd(w) + [w is not the ring's first] · s · μ · prompt

    ``miss(w)`` is ``λ · (1 - s/2)`` for each token of the prompt that w is not expected to hold: an uncached token delays
    this request and those queued after it, and evicts another block. ``s`` is the share of the requests in flight that are
    not ours: the less of a queue is known, the less it is worth waiting in it for a hit.

    A stretch of the prompt is *hot* if it came in another request, fewer requests ago than are now in flight. Several requests
    in flight share it, so it pays to hold it on more workers, and missing it costs less, down to 1. (The turns of one
    conversation follow one another and are not hot; a system prompt of all clients is.) Otherwise a shared prefix would gather
    λ times its own prefill in the queue of its first worker before a second worker gets it.

    A worker is expected to hold what the index knows. The anchor's first ring workers are expected to hold at least ``p_k ·
    earlier_tokens``, since another replica would have sent the earlier turns there. If no other router sends requests, or
    ``alone`` is set, ``s`` is 0 and the ring only breaks ties.

    ``crowd(w) = 100 · (load - least load + 1) + 400 · max(load - mean, 0)² / (mean + 2)``, where a load is all requests in
    flight: decoding takes slots and steps. Relative to the fleet, so that an error in a worker's pace does not
    multiply its whole load.

    ``pace(w)`` is ``seconds_per_token(w)`` over the fleet's mean, drawn towards 1 by a factor of at most 1.25, times
    ``slowdown(w)``.

    Inputs: all of ``Facts`` but the session. Parameters: ``miss_weight`` λ = 6, ``prior`` p = (0.9, 0.3), ``leave_weight``
    μ = 0.3, ``alone`` = False. A higher λ gives more hits and longer waits for them; it matters less than it seems
    between 3 and 8. Complexity: O(n · log n) for n workers, most of it one list pass and one sort.
    Wrong when the queues are: what other replicas sent since the last poll is unseen. And where caches are far too
    small for their prompts, waiting for a hit gains little: what the index names may be evicted by then.
    """

    name = "cache_aware"
    reasons = frozenset({"cached", "ring", "load", "cold"})

    def __init__(self, parameters: CacheAwareParameters) -> None:
        self._miss_weight = parameters.miss_weight
        self._prior = parameters.prior
        self._leave_weight = parameters.leave_weight
        self._alone = parameters.alone

    def rank(self, facts: Facts) -> Ranking:
        rows = _take_rows(facts)
        own, total = sum(rows.in_flight), sum(rows.loads)
        foreign_share = 0.0 if self._alone or not total else 1.0 - own / total
        near = take_eligible(facts, len(self._prior)) if foreign_share else ()
        weight = self._miss_weight * (1.0 - foreign_share / 2.0)
        miss = _weigh_misses(facts, weight, own)
        if near:
            self._expect_on_ring(facts, near, weight, miss)
            leave = foreign_share * self._leave_weight * facts.prompt_tokens
            miss = [tokens + leave for tokens in miss]
            miss[near[0]] -= leave
        costs = _add_up(rows, miss if rows.is_whole_fleet else [miss[position] for position in facts.eligible])
        cost_of = (
            costs.__getitem__ if rows.is_whole_fleet else dict(zip(facts.eligible, costs, strict=True)).__getitem__
        )
        order = sorted(facts.eligible, key=cost_of)
        if len(order) > 1 and cost_of(order[0]) == cost_of(order[1]):
            _put_ring_first(facts, order, cost_of)
        return Ranking(order, self._explain(facts, order[0], near[0] if near else None))

    def _expect_on_ring(self, facts: Facts, near: Sequence[int], weight: float, miss: list[float]) -> None:
        """Lower the cost of workers to which other replicas would have sent the earlier turns, unless the index knows of
        more."""
        for position, chance in zip(near, self._prior, strict=False):
            unknown = chance * facts.earlier_tokens - facts.matches.tokens(position)
            if unknown > 0:
                miss[position] = max(0.0, miss[position] - weight * unknown)

    def _explain(self, facts: Facts, first: int, ring_first: int | None) -> str:
        groups = facts.matches.groups
        best = groups[0][1] if groups else 0.0
        held = facts.matches.tokens(first) if groups else 0.0
        expected = self._prior[0] * facts.earlier_tokens if ring_first is not None else 0.0
        if first == ring_first and expected > held:
            return "ring"
        if held < max(best, expected):
            return "load"
        return "cached" if groups else "cold"


def _weigh_misses(facts: Facts, weight: float, in_flight: int) -> list[float]:
    """By position, the cost of the prompt's uncached tokens: ``weight`` for each, or less if it is hot.

    Of three workers, let a hold 3,000 of 4,000 tokens, b and c 1,000 of them. Walking from the deepest group, the cost is
    ``weight · 1000`` on a; b and c miss 2,000 tokens more. Each worker holds some, so none misses all 4,000.
    """
    groups = facts.matches.groups
    if not groups:
        return [weight * facts.prompt_tokens] * len(facts.fleet.names)
    cost = weight * (facts.prompt_tokens - groups[0][1])
    costs: list[float] = []
    for number, (_workers, tokens, age) in enumerate(groups):
        costs.append(cost)
        shallower = groups[number + 1][1] if number + 1 < len(groups) else 0.0
        rarity = min(1.0, (age + 1) / (in_flight + 1))
        cost += (1.0 + (weight - 1.0) * rarity) * (tokens - shallower)
    # Most workers are alike: they hold none, or the prefix that all share. Only the others are set one by one.
    by_cost = [(workers, held_cost) for (workers, _tokens, _age), held_cost in zip(groups, costs, strict=True)]
    size = len(facts.fleet.names)
    holding_none = (1 << size) - 1
    for workers, _cost in by_cost:
        holding_none &= ~workers
    by_cost.append((holding_none, cost))
    most = max(by_cost, key=_count_workers)
    miss = [most[1]] * size
    for workers, held_cost in by_cost:
        if workers != most[0]:
            for position in positions_of(workers):
                miss[position] = held_cost
    return miss


def _count_workers(group: tuple[int, float]) -> int:
    return group[0].bit_count()


def _put_ring_first(facts: Facts, order: list[int], cost_of: Callable[[int], float]) -> None:
    """Among the cheapest workers, the ring's first two come first. Call it only if several are equally cheap: it walks the
    ring."""
    least = cost_of(order[0])
    for position in reversed(take_eligible(facts, 2)):
        if cost_of(position) == least:
            order.remove(position)
            order.insert(0, position)


class _Rows(Struct, frozen=True):
    """The figures of the eligible workers, in their order: other workers and free positions must not change a mean."""

    in_flight: Sequence[int]
    loads: Sequence[int]
    queued: Sequence[float]
    foreign_queued: Sequence[float]
    seconds: Sequence[float]
    slowdown: Sequence[float]
    is_whole_fleet: bool


def _take_rows(facts: Facts) -> _Rows:
    fleet, eligible = facts.fleet, facts.eligible
    own, foreign = fleet.in_flight, fleet.foreign_in_flight
    queued, foreign_queued = fleet.queued_prefill_tokens, fleet.foreign_prefill_tokens
    seconds, slowdown = fleet.seconds_per_token, fleet.slowdown
    is_whole_fleet = len(eligible) == len(fleet.names)
    if not is_whole_fleet:
        own, foreign = [own[position] for position in eligible], [foreign[position] for position in eligible]
        queued, foreign_queued, seconds, slowdown = (
            [figure[position] for position in eligible] for figure in (queued, foreign_queued, seconds, slowdown)
        )
    return _Rows(own, list(map(add, own, foreign)), queued, foreign_queued, seconds, slowdown, is_whole_fleet)


def _add_up(rows: _Rows, miss: Iterable[float]) -> list[float]:
    """By row, the whole cost. It is never negative, so that a slowdown always increases it."""
    loads = rows.loads
    mean, least = sum(loads) / len(loads), min(loads) - 1
    bend = CROWD_TOKENS / (mean + 2.0)
    crowd = {load: REQUEST_TOKENS * (load - least) + bend * max(load - mean, 0.0) ** 2 for load in set(loads)}
    # Whole columns are added in C: with a thousand workers, an expression for each row would cost more than all the rest.
    work = map(add, map(add, rows.queued, rows.foreign_queued), map(add, miss, map(crowd.__getitem__, loads)))
    return list(map(mul, work, _pace(rows)))


def _pace(rows: _Rows) -> Sequence[float]:
    """By row, the time of a token over the fleet's mean. Rates within the band count as the mean."""
    seconds, slowdown = rows.seconds, rows.slowdown
    mean_s = sum(seconds) / len(seconds)
    low_s, high_s = mean_s / RATE_BAND, mean_s * RATE_BAND
    if low_s <= min(seconds) and max(seconds) <= high_s:
        return slowdown
    return [
        slow if low_s <= pace_s <= high_s else slow * pace_s / (high_s if pace_s > high_s else low_s)
        for pace_s, slow in zip(seconds, slowdown, strict=True)
    ]
