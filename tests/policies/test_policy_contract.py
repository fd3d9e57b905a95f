"""What every policy promises, whatever the facts."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.fleet.facts import Facts
from router.policies import POLICIES
from tests.policies.fleets import make_facts, make_policy

DETERMINISTIC = ["cache_aware", "prefix_ring", "session_affinity"]
TOKENS = st.floats(0, 1e6)


@st.composite
def facts_of_any_fleet(draw: st.DrawFn) -> Facts:
    workers = draw(st.integers(1, 12))
    positions = st.integers(0, workers - 1)
    eligible = sorted(draw(st.sets(positions, min_size=1)))
    groups, left = [], set(range(workers))
    for tokens in sorted(draw(st.sets(st.floats(1, 1e6), max_size=3)), reverse=True):
        holders = draw(st.sets(positions)) & left
        left -= holders
        if holders:
            groups.append((sum(1 << position for position in holders), tokens, draw(st.integers(0, 1000))))
    return make_facts(
        workers,
        eligible=eligible,
        in_flight=draw(st.dictionaries(positions, st.integers(0, 100))),
        foreign=draw(st.dictionaries(positions, st.integers(0, 100))),
        queued=draw(st.dictionaries(positions, TOKENS)),
        foreign_queued=draw(st.dictionaries(positions, TOKENS)),
        seconds=draw(st.dictionaries(positions, st.floats(1e-7, 0.1))),
        slowdown=draw(st.dictionaries(positions, st.floats(1, 100))),
        prompt=draw(st.floats(0, 1e6)),
        earlier=draw(TOKENS),
        anchor=draw(st.integers(0, (1 << 64) - 1)),
        matches=groups,
        session=draw(st.none() | positions),
        on_ring=sorted(draw(st.sets(positions))),
    )


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(facts=facts_of_any_fleet())
@settings(max_examples=150, deadline=None)
def test_every_eligible_worker_is_ranked_once_for_a_known_reason(name: str, facts: Facts) -> None:
    policy = make_policy(name)
    for _ in range(2):
        ranking = policy.rank(facts)
        assert sorted(ranking.order) == list(facts.eligible)
        assert ranking.reason in policy.reasons
    assert policy.name == name


@pytest.mark.parametrize("name", DETERMINISTIC)
@given(facts=facts_of_any_fleet())
@settings(max_examples=50, deadline=None)
def test_same_facts_give_the_same_ranking(name: str, facts: Facts) -> None:
    policy = make_policy(name)
    assert list(policy.rank(facts).order) == list(policy.rank(facts).order)
    assert list(policy.rank(facts).order) == list(make_policy(name).rank(facts).order)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - set(DETERMINISTIC)))
def test_same_seed_gives_the_same_rankings(name: str) -> None:
    one, two = (make_policy(name, seed=5) for _ in range(2))
    facts = make_facts(6)
    assert [list(one.rank(facts).order) for _ in range(20)] == [list(two.rank(facts).order) for _ in range(20)]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_an_idle_fleet_spreads_distinct_prompts(name: str) -> None:
    policy, random = make_policy(name), Random(3)
    firsts = [policy.rank(make_facts(4, anchor=random.getrandbits(64))).order[0] for _ in range(200)]
    assert all(firsts.count(position) >= 20 for position in range(4))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_worker_that_is_not_on_the_ring_yet_is_ranked(name: str) -> None:
    facts = make_facts(3, on_ring=[0, 1])
    assert sorted(make_policy(name).rank(facts).order) == [0, 1, 2]
