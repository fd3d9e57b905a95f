"""Members, leases and what is learnt of them. The index stands in for itself: it is pure."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from router.core.errors import ModelNotFound, ModelUnavailable, NoWorkerAvailable
from router.core.fleet.catalog import MAX_KNOWN_MODELS
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules, WorkerState
from router.core.fleet.load import LoadReport
from router.core.fleet.member import Lease, Member
from router.core.fleet.rules import FleetRules
from router.core.index.fingerprint import fingerprint
from router.core.index.prefix_index import PrefixIndex
from router.core.worker import WorkerAddress

RULES = FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000)
PROMPT = fingerprint([b"p" * 4096], model="m")


def addresses(hosts: str) -> list[WorkerAddress]:
    return [WorkerAddress("http", host, 80) for host in hosts]


def make_fleet(hosts: str = "ab") -> tuple[Fleet, PrefixIndex]:
    index = PrefixIndex(10_000, 1_000)
    fleet = Fleet(RULES, index)
    fleet.set_members(addresses(hosts))
    for member in fleet.members():
        bring_up(fleet, member)
    return fleet, index


def bring_up(fleet: Fleet, member: Member, model: str = "m") -> None:
    fleet.set_models(member, {model: {"id": model}})
    if member.health.on_probe_answered(0.0):
        fleet.on_health_changed(member)


def of(fleet: Fleet, host: str) -> Member:
    return next(member for member in fleet.members() if member.address.host == host)


def report(
    *,
    running: int = 0,
    waiting: int = 0,
    prefilling: float | None = 0.0,
    cache: int | None = 51_200,
    start: float = 1.0,
) -> LoadReport:
    return LoadReport(running, waiting, 0.5, prefilling, cache, start)


def poll(fleet: Fleet, member: Member, now: float, given: LoadReport) -> bool:
    return fleet.on_load(member, given, fleet.own_load(member), now)


# Who may be tried


def test_three_kinds_of_nobody() -> None:
    fleet = Fleet(RULES, PrefixIndex(10_000, 1_000))
    with pytest.raises(NoWorkerAvailable):
        fleet.catalog.eligible("m")
    fleet.set_members(addresses("a"))
    bring_up(fleet, of(fleet, "a"))
    with pytest.raises(ModelNotFound):
        fleet.catalog.eligible("other")
    fleet.set_models(of(fleet, "a"), {})
    with pytest.raises(ModelUnavailable):
        fleet.catalog.eligible("m")


def test_a_model_is_unavailable_and_not_absent_while_a_worker_has_not_told_its_models() -> None:
    fleet, _ = make_fleet("a")
    fleet.set_members(addresses("ab"))
    with pytest.raises(ModelUnavailable) as error:
        fleet.catalog.eligible("large")
    assert error.value.retry_after_s
    bring_up(fleet, of(fleet, "b"), "larger")
    with pytest.raises(ModelNotFound):
        fleet.catalog.eligible("large")


def test_a_model_that_is_declared_is_unavailable_and_not_absent() -> None:
    fleet = Fleet(dataclasses.replace(RULES, declared_models=frozenset({"large"})), PrefixIndex(10_000, 1_000))
    with pytest.raises(ModelUnavailable):
        fleet.catalog.eligible("large")
    fleet.set_members(addresses("a"))
    bring_up(fleet, of(fleet, "a"))
    with pytest.raises(ModelUnavailable):
        fleet.catalog.eligible("large")
    with pytest.raises(ModelNotFound):
        fleet.catalog.eligible("small")
    assert fleet.catalog.knows("large")


def test_a_worker_that_disowns_a_model_is_not_tried_for_it_until_it_lists_it_again() -> None:
    fleet, _ = make_fleet("ab")
    fleet.disown(of(fleet, "a"), "m")
    assert fleet.catalog.eligible("m").positions == [1]
    assert of(fleet, "a").is_list_old
    bring_up(fleet, of(fleet, "a"))
    assert fleet.catalog.eligible("m").positions == [0, 1]
    assert not of(fleet, "a").is_list_old


def test_models_that_nobody_serves_leave_nothing_behind() -> None:
    fleet, _ = make_fleet()
    for number in range(50):
        with pytest.raises(ModelNotFound):
            fleet.catalog.eligible(f"made-up-{number}")
    assert not fleet.catalog._eligible


def test_an_unchanged_fleet_is_not_a_new_one() -> None:
    fleet, _ = make_fleet("ab")
    assert fleet.set_members(addresses("ba")) == ([], [])


def test_requests_go_only_where_the_model_is() -> None:
    fleet, _ = make_fleet("abc")
    fleet.set_models(of(fleet, "b"), {"m": {"id": "m"}, "lora": {"id": "lora"}})
    assert fleet.catalog.eligible("lora").positions == [of(fleet, "b").position]
    assert len(fleet.catalog.eligible("m").positions) == 3
    assert list(fleet.catalog.served_models()) == ["lora", "m"]


def test_an_ejected_worker_is_left_out_until_nobody_else_is_there() -> None:
    fleet, _ = make_fleet()
    for host in "ab":
        member = of(fleet, host)
        member.health.on_death(1.0)
        fleet.on_health_changed(member)
        eligible = fleet.catalog.eligible("m")
        assert eligible.panic is (host == "b")
    assert len(eligible.positions) == 2
    assert not fleet.catalog.is_ready()


def test_a_returned_worker_is_slowed_down_and_then_no_more() -> None:
    fleet, _ = make_fleet()
    member = of(fleet, "a")
    for changed in (member.health.on_death(0.0), member.health.on_probe_answered(1.0)):
        assert changed
        fleet.on_health_changed(member)
    fleet.refresh_slowdowns(2.0)
    assert fleet.figures.slowdown[member.position] == 10.0
    fleet.refresh_slowdowns(11.5)
    assert fleet.figures.slowdown[member.position] == 1.0


# Leases and positions


def test_a_lease_counts_until_its_last_byte_and_its_tokens_until_the_first() -> None:
    fleet, _ = make_fleet()
    position = of(fleet, "a").position
    with fleet.lease(position, 500.0, 1.0, shows_first_token=True) as lease:
        assert (fleet.figures.in_flight[position], fleet.figures.queued_prefill_tokens[position]) == (1, 500.0)
        lease.on_first_token(2.0)
        lease.on_first_token(3.0)
        assert (fleet.figures.in_flight[position], fleet.figures.queued_prefill_tokens[position]) == (1, 0.0)
    assert fleet.figures.in_flight[position] == 0


def test_a_position_is_not_given_away_before_its_last_lease_has_ended() -> None:
    fleet, index = make_fleet("a")
    first = of(fleet, "a")
    index.record(first.position, PROMPT)
    lease = fleet.lease(first.position, 10.0, 1.0, shows_first_token=True)
    fleet.set_members(addresses("b"))
    assert of(fleet, "b").position != first.position
    with lease:
        assert fleet.figures.in_flight[first.position] == 1
    fleet.set_members(addresses("bc"))
    assert of(fleet, "c").position == first.position
    assert index.blocks(first.position) == 0


def test_a_worker_that_comes_back_under_its_name_begins_anew() -> None:
    fleet, index = make_fleet("a")
    index.record(of(fleet, "a").position, PROMPT)
    fleet.set_members([])
    fleet.set_members(addresses("a"))
    assert of(fleet, "a").health.state is WorkerState.STARTING
    assert index.blocks(of(fleet, "a").position) == 0


# What is learnt


def test_service_is_measured_from_when_the_worker_was_free() -> None:
    fleet, _ = make_fleet()
    position = of(fleet, "a").position
    first = fleet.lease(position, 1000.0, 10.0, shows_first_token=True)
    second = fleet.lease(position, 1000.0, 10.0, shows_first_token=True)
    first.on_first_token(10.5)
    second.on_first_token(11.0)
    assert (first.service_s, second.service_s) == (0.5, 0.5)


def test_workers_that_showed_nothing_follow_those_that_did() -> None:
    fleet, _ = make_fleet("ab")
    seen, unseen = of(fleet, "a").position, of(fleet, "b").position
    now = 0.0
    for tokens in (1000.0, 5000.0) * 20:
        with fleet.lease(seen, tokens, now, shows_first_token=True) as lease:
            now += tokens / 100_000.0
            lease.on_first_token(now)
        fleet.learning.learn_rate(lease, tokens)
    assert fleet.figures.seconds_per_token[seen] == pytest.approx(1e-5, rel=0.05)
    assert fleet.figures.seconds_per_token[unseen] == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize(
    ("lengths", "window"),
    [
        ((8_192,), 8_192),
        ((8_192, 8_192, 50), 8_192),
        ((8_192, 8_192, 1 << 26), 8_192),
        ((8_192, 50), 8_192),
        ((50, 8_192), 8_192),
        ((8_192, True), 8_192),
        ((8_192, -5), 8_192),
        ((8_192, 1 << 40), 8_192),
        ((8_192, 4_096.0), 8_192),
        ((8_192, None), 8_192),
        ((True, None), 0),
    ],
)
def test_a_worker_that_lies_about_its_window_changes_nothing_where_others_say_more_or_agree(
    lengths: tuple[Any, ...], window: int
) -> None:
    hosts = "abcd"[: len(lengths)]
    fleet, _ = make_fleet(hosts)
    for host, length in zip(hosts, lengths, strict=True):
        fleet.set_models(of(fleet, host), {"m": {"max_model_len": length}})
    assert (fleet.catalog.window("m"), fleet.catalog.window("made up")) == (window, 0)


def test_a_window_is_that_of_the_workers_that_may_be_tried() -> None:
    fleet, _ = make_fleet("ab")
    fleet.set_models(of(fleet, "a"), {"m": {"max_model_len": 8_192}})
    fleet.set_models(of(fleet, "b"), {"m": {"max_model_len": 4_096}})
    for _ in range(RULES.health.failures):
        if of(fleet, "a").health.on_death(1.0):
            fleet.on_health_changed(of(fleet, "a"))
    assert fleet.catalog.window("m") == 4_096
    fleet.set_models(of(fleet, "a"), {"m": {"max_model_len": 2_048}})
    fleet.set_models(of(fleet, "b"), {"n": {}})
    assert fleet.catalog.window("m") == 2_048, "an ejected worker is better than none"
    fleet.set_models(of(fleet, "b"), {"m": {"max_model_len": 4_096}})
    fleet.set_members(addresses("b"))
    assert fleet.catalog.window("m") == 4_096
    fleet.set_models(of(fleet, "b"), {"m": {"max_model_len": 2_048}})
    assert fleet.catalog.window("m") == 2_048


def test_names_that_a_worker_makes_up_at_each_look_push_out_nobodys_that_are_served() -> None:
    fleet, _ = make_fleet("abc")
    fleet.set_models(of(fleet, "b"), {"gone": {}})
    fleet.set_members(addresses("ac"))
    fleet.learning.learn_bytes_per_token("gone", 3000, 1000)
    for look in range(30):
        fleet.set_models(of(fleet, "c"), {f"{look}-{number}": {} for number in range(1000)})
    assert len(fleet.catalog) == MAX_KNOWN_MODELS
    assert fleet.catalog.knows("m")
    assert fleet.catalog.knows("29-999")
    assert not fleet.catalog.knows("gone")
    assert not fleet.catalog.knows("0-0")
    assert fleet.learning.bytes_per_token("gone") == 4.0
    assert len(fleet.catalog.served_models()) == 1001


def test_what_is_served_follows_the_fleet() -> None:
    fleet, _ = make_fleet("ab")
    fleet.set_models(of(fleet, "b"), {"m": {"id": "other"}, "n": {}})
    assert list(fleet.catalog.served_models()) == ["m", "n"]
    fleet.set_members(addresses("a"))
    assert fleet.catalog.served_models() == {"m": {"id": "m"}}


def test_an_adapter_has_its_base_models_window() -> None:
    fleet, _ = make_fleet("a")
    cards: dict[str, dict[str, Any]] = {
        "base": {"max_model_len": 8_192, "parent": None},
        "tuned": {"max_model_len": None, "parent": "base"},
    }
    fleet.set_models(of(fleet, "a"), cards)
    assert fleet.catalog.window("tuned") == 8_192


def test_bytes_per_token_are_learnt_for_known_models_only() -> None:
    fleet, _ = make_fleet()
    for _ in range(100):
        fleet.learning.learn_bytes_per_token("m", 3000, 1000)
        fleet.learning.learn_bytes_per_token("nobody", 3000, 1000)
    assert fleet.learning.bytes_per_token("m") == pytest.approx(3.0, rel=0.02)
    assert fleet.learning.bytes_per_token("nobody") == 4.0


@pytest.mark.parametrize(("prompt_bytes", "tokens"), [(1024, 999_999_999), (4_000_000, 1000), (1024, 0)])
def test_what_is_no_text_does_not_teach_how_text_is_cut(prompt_bytes: int, tokens: int) -> None:
    fleet, _ = make_fleet()
    fleet.learning.learn_bytes_per_token("m", prompt_bytes, tokens)
    assert fleet.learning.bytes_per_token("m") == 4.0


@pytest.mark.parametrize(("tokens", "seconds"), [(1e9, 1e-9), (1.0, 1e9)])
def test_no_sample_makes_a_worker_look_free_or_dead(tokens: float, seconds: float) -> None:
    fleet, _ = make_fleet("a")
    position = of(fleet, "a").position
    for _ in range(100):
        with fleet.lease(position, tokens, 0.0, shows_first_token=True) as lease:
            lease.on_first_token(seconds)
        lease.service_s = seconds
        fleet.learning.learn_rate(lease, tokens)
    assert 1e-7 <= fleet.figures.seconds_per_token[position] <= 0.1


def test_a_prompt_that_was_cached_whole_teaches_no_rate() -> None:
    fleet, _ = make_fleet("a")
    position = of(fleet, "a").position
    before = fleet.figures.seconds_per_token[position]
    for uncached in (0.0, -500.0):
        with fleet.lease(position, 100.0, 0.0, shows_first_token=True) as lease:
            lease.on_first_token(9.0)
        fleet.learning.learn_rate(lease, uncached)
    assert fleet.figures.seconds_per_token[position] == before


def test_more_cached_than_there_was_never_makes_others_queues_negative() -> None:
    fleet, _ = make_fleet("a")
    member = of(fleet, "a")
    with fleet.lease(member.position, 0.0, 0.0, shows_first_token=True) as lease:
        pass
    for _ in range(200):
        fleet.learning.learn_rate(lease, -10_000.0)
    poll(fleet, member, 1.0, report(waiting=4, prefilling=100.0))
    assert fleet.figures.foreign_prefill_tokens[member.position] == pytest.approx(100.0, rel=0.01)


# Polled load


def test_the_index_is_as_large_as_the_workers_cache() -> None:
    fleet, index = make_fleet("a")
    member = of(fleet, "a")
    assert index.limit(member.position) == 100_000 * 4 // 1024
    poll(fleet, member, 1.0, report(cache=51_200))
    assert index.limit(member.position) == 51_200 * 4 // 1024


def test_a_restart_empties_what_is_known_of_the_cache() -> None:
    fleet, index = make_fleet("a")
    member = of(fleet, "a")
    assert not poll(fleet, member, 1.0, report(start=1.0))
    index.record(member.position, PROMPT)
    assert not poll(fleet, member, 2.0, report(start=1.0))
    assert index.blocks(member.position) == 4
    assert poll(fleet, member, 3.0, report(start=2.5))
    assert index.blocks(member.position) == 0


def test_a_worker_that_sleeps_is_tried_for_nothing_and_comes_back_with_an_empty_cache() -> None:
    fleet, index = make_fleet("ab")
    member = of(fleet, "a")
    index.record(member.position, PROMPT)
    poll(fleet, member, 5.0, report())
    assert index.blocks(member.position) == 4
    poll(fleet, member, 6.0, dataclasses.replace(report(), is_asleep=True))
    assert (member.state, member.since) == (WorkerState.ASLEEP, 6.0)
    assert fleet.catalog.eligible("m").positions == [1]
    assert index.blocks(member.position) == 0
    index.record(member.position, PROMPT)  # a request that was under way ends
    poll(fleet, member, 7.0, dataclasses.replace(report(), is_asleep=True))
    assert member.since == 6.0
    poll(fleet, member, 8.0, report())
    assert member.state is WorkerState.UP
    assert fleet.catalog.eligible("m").positions == [0, 1]
    assert index.blocks(member.position) == 0


def test_a_model_whose_workers_all_sleep_is_unavailable_and_nobody_is_tried_in_a_panic() -> None:
    fleet, _ = make_fleet("a")
    member = of(fleet, "a")
    poll(fleet, member, 1.0, dataclasses.replace(report(), is_asleep=True))
    assert not fleet.catalog.is_ready()
    with pytest.raises(ModelUnavailable):
        fleet.catalog.eligible("m")
    member.health.on_death(2.0)
    fleet.on_health_changed(member)
    with pytest.raises(ModelUnavailable):
        fleet.catalog.eligible("m")
    assert member.state is WorkerState.ASLEEP
    poll(fleet, member, 3.0, report())
    assert (member.state, fleet.catalog.eligible("m").panic) == (WorkerState.UP, False)


def test_room_is_told_of_when_a_worker_wakes_and_not_while_it_sleeps() -> None:
    fleet, _ = make_fleet("a")
    told: list[Member] = []
    fleet.on_capacity = told.append
    member = of(fleet, "a")
    poll(fleet, member, 1.0, dataclasses.replace(report(), is_asleep=True))
    assert not told
    poll(fleet, member, 2.0, report())
    assert told


def test_a_worker_that_does_not_say_when_it_started_has_not_restarted() -> None:
    fleet, index = make_fleet("a")
    member = of(fleet, "a")
    index.record(member.position, PROMPT)
    for start in (1.0, None, None, 2.0):
        given = LoadReport(0, 0, 0.5, None, None, start)
        assert not poll(fleet, member, 1.0, given)
    assert index.blocks(member.position) == 4


def test_where_no_start_is_told_a_counter_that_fell_is_a_restart() -> None:
    fleet, index = make_fleet("a")
    member = of(fleet, "a")

    def told(*looked_up: float, start: float | None = None) -> LoadReport:
        engines = {b'{engine="%d"}' % number: tokens for number, tokens in enumerate(looked_up)}
        return dataclasses.replace(report(), process_start_time=start, looked_up_tokens=engines)

    for given in (told(100.0, 50.0), told(100.0, 80.0), told(120.0)):
        assert not poll(fleet, member, 1.0, given)
    index.record(member.position, PROMPT)
    assert not poll(fleet, member, 2.0, told(120.0, 80.0))
    assert index.blocks(member.position) == 4
    assert poll(fleet, member, 3.0, told(900.0, 0.0)), "one of two engines restarted"
    assert index.blocks(member.position) == 0
    assert member.is_list_old
    assert poll(fleet, member, 4.0, told(5.0, start=1.0)), "a start is told since the restart"
    assert not poll(fleet, member, 5.0, told(1.0, start=1.0)), "what is told of the start is believed"


def test_the_index_hears_of_a_cache_only_when_its_size_really_changed() -> None:
    index = RecordingIndex()
    fleet = Fleet(RULES, index)
    fleet.set_members(addresses("a"))
    member = of(fleet, "a")
    for now, cache in enumerate((100_000, 101_000, 200_000, 200_000)):
        poll(fleet, member, float(now), report(cache=cache))
    poll(fleet, member, 9.0, report(cache=200_000, start=2.0))
    fleet.set_members([])
    assert index.calls == ["add 0 390", "resize 0 781", "clear 0", "remove 0"]


def test_the_index_keeps_a_removed_workers_place_until_its_last_lease_ends() -> None:
    index = RecordingIndex()
    fleet = Fleet(RULES, index)
    fleet.set_members(addresses("a"))
    leases = [fleet.lease(0, 1.0, 0.0, shows_first_token=True) for _ in range(2)]
    fleet.set_members([])
    for lease in leases:
        assert index.calls == ["add 0 390"]
        with lease:
            pass
    assert index.calls == ["add 0 390", "remove 0"]


def test_what_is_not_ours_is_others() -> None:
    fleet, _ = make_fleet("a")
    member = of(fleet, "a")
    with fleet.lease(member.position, 800.0, 1.0, shows_first_token=True):
        poll(fleet, member, 2.0, report(running=2, waiting=2, prefilling=3000.0))
        assert fleet.figures.foreign_in_flight[member.position] == 3
        assert fleet.figures.foreign_prefill_tokens[member.position] == pytest.approx(
            3000.0 + 2 * 1000.0 - 800.0, rel=0.01
        )


def test_a_request_that_ended_while_the_worker_was_asked_is_not_taken_for_anothers() -> None:
    fleet, _ = make_fleet("a")
    member = of(fleet, "a")
    with fleet.lease(member.position, 800.0, 1.0, shows_first_token=True):
        asked = fleet.own_load(member)
    fleet.on_load(member, report(running=1, prefilling=800.0), asked, 2.0)
    assert fleet.figures.foreign_in_flight[member.position] == 0
    assert fleet.figures.foreign_prefill_tokens[member.position] == 0


def test_others_queues_drain_between_polls_and_never_below_nothing() -> None:
    fleet, _ = make_fleet("a")
    member = of(fleet, "a")
    poll(fleet, member, 1.0, report(running=3, prefilling=5000.0))
    fleet.drain_foreign(1.0)
    before = fleet.figures.foreign_prefill_tokens[member.position]
    fleet.drain_foreign(1.1)
    assert fleet.figures.foreign_prefill_tokens[member.position] == pytest.approx(before - 0.1 * 10_000.0)
    fleet.drain_foreign(100.0)
    assert fleet.figures.foreign_prefill_tokens[member.position] == 0


def test_what_aborted_requests_leave_in_the_workers_sums_is_forgotten() -> None:
    fleet, _ = make_fleet("a")
    member = of(fleet, "a")
    for now in range(3000):
        poll(fleet, member, float(now), report(running=1, prefilling=9000.0))
    assert fleet.figures.foreign_prefill_tokens[member.position] < 100.0


def test_stale_load_is_not_believed() -> None:
    fleet, _ = make_fleet("a")
    member = of(fleet, "a")
    poll(fleet, member, 1.0, report(running=9, waiting=9))
    fleet.expire_load(member, 5.9)
    assert fleet.figures.foreign_in_flight[member.position] == 18
    fleet.expire_load(member, 6.1)
    assert fleet.figures.foreign_in_flight[member.position] == 0


def test_a_reply_that_is_not_streamed_stops_queueing_when_its_time_has_passed_and_nothing_waits() -> None:
    fleet, _ = make_fleet("a")
    member = of(fleet, "a")
    with fleet.lease(member.position, 10_000.0, 0.0, shows_first_token=False):
        poll(fleet, member, 0.5, report(running=1))
        assert fleet.figures.queued_prefill_tokens[member.position] == 10_000.0
        poll(fleet, member, 1.5, report(running=1, waiting=1))
        assert fleet.figures.queued_prefill_tokens[member.position] == 10_000.0
        poll(fleet, member, 1.6, report(running=1))
        assert fleet.figures.queued_prefill_tokens[member.position] == 0.0


class RecordingIndex(PrefixIndex):
    """Records the fleet's calls."""

    def __init__(self) -> None:
        super().__init__(1000, 100)
        self.calls: list[str] = []

    def add(self, position: int, capacity_blocks: int | None = None) -> None:
        self.calls.append(f"add {position} {capacity_blocks}")

    def remove(self, position: int) -> None:
        self.calls.append(f"remove {position}")

    def resize(self, position: int, capacity_blocks: int) -> None:
        self.calls.append(f"resize {position} {capacity_blocks}")

    def clear(self, position: int) -> None:
        self.calls.append(f"clear {position}")


class FleetMachine(RuleBasedStateMachine):
    """Whatever comes and goes, figures are what the leases say, and nothing is left when they have ended."""

    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.fleet, _ = make_fleet("ab")
        self.live: list[Lease] = []
        self.now = 0.0

    @rule(hosts=st.sets(st.sampled_from("abcd")))
    def change_members(self, hosts: set[str]) -> None:
        self.fleet.set_members(addresses("".join(sorted(hosts))))

    @rule(target=leases, tokens=st.floats(0.0, 1e5), host=st.sampled_from("abcd"), streamed=st.booleans())
    def begin(self, tokens: float, host: str, streamed: bool) -> Any:
        member = next((member for member in self.fleet.members() if member.address.host == host), None)
        if member is None:
            return None
        lease = self.fleet.lease(member.position, tokens, self.now, shows_first_token=streamed)
        self.live.append(lease)
        return lease

    @rule(lease=leases)
    def answer(self, lease: Lease | None) -> None:
        self.now += 0.1
        if lease in self.live and lease is not None:
            lease.on_first_token(self.now)

    @rule(lease=consumes(leases))
    def end(self, lease: Lease | None) -> None:
        if lease is not None:
            with lease:
                pass
            self.live.remove(lease)

    @rule(running=st.integers(0, 9), waiting=st.integers(0, 9))
    def poll_all(self, running: int, waiting: int) -> None:
        self.now += 1.0
        for member in self.fleet.members():
            poll(self.fleet, member, self.now, report(running=running, waiting=waiting))

    @invariant()
    def figures_are_what_the_leases_say(self) -> None:
        for position in range(len(self.fleet.figures.names)):
            here = [lease for lease in self.live if lease.member.position == position]
            assert self.fleet.figures.in_flight[position] == len(here)
            queued = sum(lease.tokens for lease in here if not lease.answered)
            assert self.fleet.figures.queued_prefill_tokens[position] == pytest.approx(queued, abs=1e-3)

    @invariant()
    def each_member_has_a_place_of_its_own(self) -> None:
        places = [member.position for member in self.fleet.members()]
        places += {lease.member.position for lease in self.live if lease.member.removed}
        assert len(set(places)) == len(places)
        for member in self.fleet.members():
            assert self.fleet.member(member.position) is member
            assert self.fleet.figures.names[member.position] == member.name

    def teardown(self) -> None:
        for lease in self.live:
            with lease:
                pass
        assert not any(self.fleet.figures.in_flight)
        assert not any(self.fleet.figures.queued_prefill_tokens)


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
