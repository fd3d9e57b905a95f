"""Claims of each policy in turn."""

from __future__ import annotations

from random import Random

import pytest

from tests.policies.fleets import make_facts, make_policy, walk

# --- round_robin, random


def test_round_robin_gives_each_worker_its_turn() -> None:
    policy = make_policy("round_robin")
    assert [policy.rank(make_facts(3)).order[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_round_robin_skips_who_is_not_eligible_and_favours_no_neighbour_of_it() -> None:
    policy = make_policy("round_robin")
    assert [policy.rank(make_facts(4, eligible=[0, 2, 3])).order[0] for _ in range(6)] == [0, 2, 3, 0, 2, 3]


def test_round_robin_falls_back_to_the_next_in_turn() -> None:
    policy = make_policy("round_robin")
    policy.rank(make_facts(4))
    assert list(policy.rank(make_facts(4)).order) == [1, 2, 3, 0]


def test_random_gives_each_worker_about_its_share() -> None:
    policy = make_policy("random")
    firsts = [policy.rank(make_facts(4)).order[0] for _ in range(2000)]
    assert all(400 < firsts.count(position) < 600 for position in range(4))


# --- least_loaded, power_of_two


@pytest.mark.parametrize("name", ["least_loaded", "power_of_two"])
def test_load_of_other_replicas_counts_like_our_own(name: str) -> None:
    facts = make_facts(2, in_flight={0: 3}, foreign={1: 4})
    assert list(make_policy(name).rank(facts).order) == [0, 1]


@pytest.mark.parametrize("name", ["least_loaded", "power_of_two"])
def test_a_worker_that_has_just_come_back_is_not_flooded_for_being_idle(name: str) -> None:
    facts = make_facts(2, in_flight={0: 5}, slowdown={1: 10.0})
    assert list(make_policy(name).rank(facts).order) == [0, 1]


def test_least_loaded_orders_all_by_load() -> None:
    facts = make_facts(4, in_flight={0: 3, 1: 1, 2: 2})
    assert list(make_policy("least_loaded").rank(facts).order) == [3, 1, 2, 0]


def test_power_of_two_never_puts_the_busiest_first() -> None:
    policy = make_policy("power_of_two")
    assert all(policy.rank(make_facts(5, in_flight={3: 9})).order[0] != 3 for _ in range(200))


# --- session_affinity


def test_session_affinity_stays_with_the_last_worker_whatever_its_load() -> None:
    facts = make_facts(4, session=2, in_flight={2: 50})
    ranking = make_policy("session_affinity").rank(facts)
    assert (ranking.order[0], ranking.reason) == (2, "session")


def test_session_affinity_follows_the_ring_when_the_last_worker_is_gone() -> None:
    facts = make_facts(4, session=2, eligible=[0, 1, 3], anchor=77)
    ranking = make_policy("session_affinity").rank(facts)
    assert list(ranking.order) == [position for position in walk(facts) if position != 2]
    assert ranking.reason == "ring"


# --- prefix_ring


def test_prefix_ring_is_the_rings_order_in_a_quiet_fleet() -> None:
    for anchor in (Random(1).getrandbits(64), 5):
        facts = make_facts(6, anchor=anchor, in_flight={walk(make_facts(6, anchor=anchor))[0]: 3})
        assert list(make_policy("prefix_ring").rank(facts).order) == walk(facts)


def test_prefix_ring_passes_over_who_is_above_the_bound_and_keeps_them_last() -> None:
    order = walk(make_facts(4, anchor=9))
    facts = make_facts(4, anchor=9, in_flight={order[0]: 30, order[1]: 5})
    ranking = make_policy("prefix_ring").rank(facts)
    assert list(ranking.order) == [*order[1:], order[0]]
    assert ranking.reason == "over_bound"


def test_prefix_ring_without_a_bound_never_leaves_the_ring() -> None:
    order = walk(make_facts(4, anchor=9))
    facts = make_facts(4, anchor=9, in_flight={order[0]: 1000})
    assert list(make_policy("prefix_ring", ring_bound=0).rank(facts).order) == order


def test_the_bound_counts_only_eligible_workers() -> None:
    order = walk(make_facts(4, anchor=9))
    facts = make_facts(4, anchor=9, eligible=sorted(order[:2]), in_flight={order[0]: 8, order[1]: 8, order[2]: 100})
    assert list(make_policy("prefix_ring").rank(facts).order) == order[:2]


# --- cache_aware


def rank(facts_of: dict[str, object], **settings: object) -> tuple[list[int], str]:
    ranking = make_policy("cache_aware", **settings).rank(make_facts(**facts_of))  # type: ignore[arg-type]
    return list(ranking.order), ranking.reason


def test_a_cold_prompt_in_an_idle_fleet_goes_where_every_replica_would_send_it() -> None:
    for anchor in range(0, 1 << 64, 1 << 60):
        order, reason = rank({"anchor": anchor})
        assert order[:2] == walk(make_facts(anchor=anchor))[:2]
        assert reason == "cold"


def test_the_worker_that_holds_the_most_comes_first() -> None:
    order, reason = rank({"matches": [(1 << 2, 3000.0, 500), (1 << 1, 1000.0, 400)]})
    assert (order[:2], reason) == ([2, 1], "cached")


def test_a_long_queue_outweighs_what_is_cached() -> None:
    order, reason = rank({"matches": [(1 << 2, 3000.0, 500)], "queued": {2: 50_000.0}})
    assert order[-1] == 2
    assert reason == "load"


def test_a_short_queue_does_not() -> None:
    order, reason = rank({"matches": [(1 << 2, 3000.0, 500)], "queued": {2: 6000.0}})
    assert (order[0], reason) == (2, "cached")


def test_queues_of_other_replicas_count_like_our_own() -> None:
    ours, theirs = rank({"queued": {0: 9000.0, 1: 100.0}}), rank({"foreign_queued": {0: 9000.0, 1: 100.0}})
    assert ours == theirs


def test_a_prefix_that_many_in_flight_share_is_left_sooner() -> None:
    busy = {"in_flight": dict.fromkeys(range(4), 10), "queued": {2: 6000.0}}
    assert rank({**busy, "matches": [(1 << 2, 3000.0, 500)]})[0][0] == 2
    assert rank({**busy, "matches": [(1 << 2, 3000.0, 0)]})[0][0] != 2


def test_earlier_turns_are_expected_on_the_ring_when_others_route_too() -> None:
    ring = walk(make_facts(anchor=3))
    busy = {"anchor": 3, "earlier": 3600.0, "foreign": dict.fromkeys(range(4), 5)}
    order, reason = rank({**busy, "queued": {ring[0]: 5000.0}})
    assert (order[0], reason) == (ring[0], "ring")
    order, _reason = rank({**busy, "queued": {ring[0]: 5000.0}}, alone=True)
    assert order[0] != ring[0]


def test_what_the_index_knows_beats_what_the_ring_suggests() -> None:
    ring = walk(make_facts(anchor=3))
    facts = {
        "anchor": 3,
        "earlier": 3000.0,
        "foreign": dict.fromkeys(range(4), 1),
        "in_flight": dict.fromkeys(range(4), 9),
        "matches": [(1 << ring[3], 3900.0, 500)],
    }
    assert rank(facts)[0][0] == ring[3]


def test_a_worker_three_times_slower_is_avoided_and_measurement_noise_is_not() -> None:
    ring = walk(make_facts(8, anchor=3))
    assert rank({"workers": 8, "anchor": 3, "seconds": {ring[0]: 3e-4}})[0][-1] == ring[0]
    assert rank({"workers": 8, "anchor": 3, "seconds": {ring[0]: 1.1e-4}})[0][0] == ring[0]


def test_a_worker_that_has_just_come_back_is_not_sent_everything_for_being_idle() -> None:
    facts = {"queued": {0: 3000.0, 2: 3000.0, 3: 3000.0}, "in_flight": {0: 2, 2: 2, 3: 2}, "slowdown": {1: 10.0}}
    assert rank(facts)[0][-1] == 1


def test_workers_of_other_models_set_no_mean() -> None:
    facts = {"eligible": [0, 1], "in_flight": {0: 5, 1: 6}, "queued": {0: 10.0}, "prompt": 100.0, "anchor": 3}
    noisy = {**facts, "in_flight": {0: 5, 1: 6, 2: 900}, "seconds": {3: 0.09}}
    assert rank(facts) == rank(noisy)


def test_requests_in_flight_decide_where_nothing_else_differs() -> None:
    order, _reason = rank({"in_flight": {0: 60, 1: 62, 2: 58, 3: 61}})
    assert order == [2, 0, 3, 1]
