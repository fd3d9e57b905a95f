"""The engine against a model that takes every step and touches every request in it, and against formulas."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.simulator.engine import Engine, EngineLimits, Event, Generation
from router.simulator.prefix_cache import PrefixCache

MS = 1_000_000
LIMITS = EngineLimits(
    block_tokens=16,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    prefill_rate=1_000.0,
    attention_cost=0.0,
    itl_ns=30 * MS,
    step_overhead_ns=0,
)
FOREVER = 10**15


def make_engine(blocks: int = 1_000, *, request_latency_ns: int = 0, **changes: float) -> Engine:
    limits = replace(LIMITS, **changes)  # type: ignore[arg-type]
    return Engine(limits, PrefixCache(blocks), request_latency_ns=request_latency_ns)


def prompt(tokens: int, output: int = 1, *, name: int = 0, block_tokens: int = 16) -> Generation:
    """Prompts of one name share their prefix."""
    hashes = [name * 10_000 + at for at in range(tokens // block_tokens)]
    return Generation(prompt_tokens=tokens, output_tokens=output, hashes=hashes)


def first_ms(events: list[Event], generation: Generation) -> float:
    return next(e.at_ns for e in events if e.generation is generation and not e.is_last) / MS


def last_ms(events: list[Event], generation: Generation) -> float:
    return next(e.at_ns for e in events if e.generation is generation and e.is_last) / MS


def test_first_token_comes_when_the_prompt_is_computed() -> None:
    engine, generation = make_engine(), prompt(200, 3)
    engine.submit(generation, 5 * MS)
    events = engine.advance(FOREVER)
    assert first_ms(events, generation) == 5 + 200
    assert last_ms(events, generation) == 5 + 200 + 2 * 30


def test_attention_makes_each_chunk_cost_its_context() -> None:
    engine, generation = make_engine(attention_cost=1e-6), prompt(100)
    engine.submit(generation, 0)
    quadratic_ms = 1e-6 * (64 * 32 + 36 * (64 + 18)) * 1e3
    assert first_ms(engine.advance(FOREVER), generation) == pytest.approx(100 + quadratic_ms)


def test_step_overhead_is_paid_for_every_step() -> None:
    engine, generation = make_engine(step_overhead_ns=7 * MS), prompt(128, 2)
    engine.submit(generation, 0)
    assert last_ms(engine.advance(FOREVER), generation) == 2 * (64 + 7) + 37


def test_prefill_is_first_come_first_served_and_shares_a_step() -> None:
    engine = make_engine()
    early, late = prompt(100, name=1), prompt(20, name=2)
    engine.submit(early, 0)
    engine.submit(late, 0)
    events = engine.advance(FOREVER)
    # 64 of the first; then 36 of the first and 20 of the second together.
    assert first_ms(events, early) == first_ms(events, late) == 64 + 56


def test_decoding_takes_its_token_before_prefill_takes_the_rest() -> None:
    engine = make_engine()
    decoding, long = prompt(10, 100, name=1), prompt(126, name=2)
    engine.submit(decoding, 0)
    engine.advance(10 * MS)
    engine.submit(long, 10 * MS)
    events = engine.advance(FOREVER)
    # The step in progress ends at 40; then 63 + 63 tokens in two steps that decode too.
    assert first_ms(events, long) == 40 + 2 * (63 + 30)


def test_an_arrival_cuts_a_run_of_decode_steps_at_the_next_step() -> None:
    engine = make_engine()
    engine.submit(prompt(10, 1_000, name=1), 0)
    engine.advance(0)
    late = prompt(20, name=2)
    engine.submit(late, 100 * MS)
    assert first_ms(engine.advance(FOREVER), late) == 130 + 30 + 20


def test_a_request_reaches_the_scheduler_after_its_overhead() -> None:
    engine, generation = make_engine(request_latency_ns=500 * MS), prompt(20)
    engine.submit(generation, 0, 7 * MS)
    assert engine.next_event_ns() == 507 * MS
    assert first_ms(engine.advance(FOREVER), generation) == 527


def test_latency_is_shared_by_those_that_come_together() -> None:
    engine = make_engine(request_latency_ns=500 * MS)
    generations = [prompt(20, name=name) for name in range(2)]
    for generation in generations:
        engine.submit(generation, 0)
    events = engine.advance(FOREVER)
    assert [first_ms(events, generation) for generation in generations] == [540, 540]


def test_those_that_come_while_the_front_end_works_are_through_together() -> None:
    engine = make_engine()
    generations = [prompt(20, name=name) for name in range(3)]
    for at, generation in enumerate(generations):
        engine.submit(generation, at * MS, 100 * MS)
    events = engine.advance(FOREVER)
    # The first alone until 100; then the other two at once, until 300, and in one step.
    assert [first_ms(events, generation) for generation in generations] == [120, 340, 340]


def test_a_front_end_that_works_lets_decoding_go_on_and_is_free_again() -> None:
    engine = make_engine()
    decoding, late, later = prompt(10, 100, name=1), prompt(20, name=2), prompt(20, name=3)
    engine.submit(decoding, 0)
    engine.submit(late, 1 * MS, 100 * MS)
    engine.submit(later, 900 * MS, 100 * MS)
    events = engine.advance(FOREVER)
    assert first_ms(events, late) == 130 + 30 + 20
    assert first_ms(events, later) == 1020 + 30 + 20


def test_who_leaves_before_the_front_end_turns_to_him_costs_nobody_anything() -> None:
    engine = make_engine()
    first, gone, last = (prompt(20, name=name) for name in range(3))
    for generation in (first, gone, last):
        engine.submit(generation, 0, 100 * MS)
    assert engine.waiting == 3
    engine.abort(gone, 50 * MS)
    assert engine.waiting == 2
    events = engine.advance(FOREVER)
    assert (first_ms(events, first), first_ms(events, last)) == (120, 220)
    assert engine.stats.finished["abort"] == 1


def test_more_than_max_num_seqs_wait() -> None:
    engine = make_engine()
    generations = [prompt(4, 50, name=name) for name in range(6)]
    for generation in generations:
        engine.submit(generation, 0)
    engine.advance(100 * MS)
    assert (engine.running, engine.waiting) == (4, 2)
    events = engine.advance(FOREVER)
    assert first_ms(events, generations[4]) > last_ms(events, generations[0])
    assert (engine.running, engine.waiting) == (0, 0)


def test_a_full_hit_still_computes_a_block() -> None:
    engine = make_engine()
    for tokens, cached in ((64, 48), (65, 64), (63, 48), (16, 0), (15, 0)):
        for _ in range(2):
            generation = prompt(tokens, name=tokens)
            engine.submit(generation, FOREVER)
            engine.advance(2 * FOREVER)
        assert generation.cached_tokens == cached
        engine = make_engine()


def test_cached_tokens_cost_no_prefill() -> None:
    engine, again = make_engine(), prompt(200, name=1)
    engine.submit(prompt(200, name=1), 0)
    engine.advance(1_000 * MS)
    engine.submit(again, 1_000 * MS)
    assert first_ms(engine.advance(FOREVER), again) == 1_000 + 200 - 192
    assert engine.stats.prefix_queries == 400
    assert engine.stats.prefix_hits == 192


def test_blocks_can_be_hit_before_the_request_that_computed_them_ends() -> None:
    engine, second = make_engine(), prompt(64, name=1)
    engine.submit(prompt(64, 1_000, name=1), 0)
    engine.advance(64 * MS)
    engine.submit(second, 64 * MS)
    engine.advance(200 * MS)
    assert second.cached_tokens == 48


def test_blocks_of_the_answer_can_be_hit_when_it_has_ended() -> None:
    engine, followed = make_engine(), prompt(80, name=1)
    answered = Generation(prompt_tokens=40, output_tokens=30, hashes=[10_000, 10_001], output_hashes=[10_002, 10_003])
    engine.submit(answered, 0)
    engine.advance(FOREVER)
    engine.submit(followed, FOREVER)
    engine.advance(2 * FOREVER)
    assert followed.cached_tokens == 64


def test_a_request_without_blocks_waits_for_them() -> None:
    engine = make_engine(blocks=10)
    first, second = prompt(100, 20, name=1), prompt(100, 20, name=2)
    engine.submit(first, 0)
    engine.submit(second, 0)
    engine.advance(50 * MS)
    assert (engine.running, engine.waiting) == (1, 1)
    events = engine.advance(FOREVER)
    assert first_ms(events, second) == last_ms(events, first) + 100


def test_what_can_never_fit_is_refused() -> None:
    engine = make_engine(blocks=10)
    assert engine.fits(160, 1)
    assert not engine.fits(160, 2)
    with pytest.raises(ValueError, match="smaller"):
        engine.submit(prompt(160, 2), 0)


@pytest.mark.parametrize("at_ms", [0, 10, 64, 70, 500])
def test_an_abort_frees_seat_and_blocks_at_once_in_every_phase(at_ms: int) -> None:
    engine = make_engine(max_num_seqs=1)
    running, waiting = prompt(100, 100, name=1), prompt(10, 5, name=2)
    engine.submit(running, 0)
    engine.submit(waiting, 0)
    engine.abort(waiting, 0)
    engine.abort(running, at_ms * MS)
    engine.abort(running, at_ms * MS)
    assert (engine.running, engine.waiting, engine.cache.held_blocks) == (0, 0, 0)
    assert engine.stats.finished["abort"] == 2
    assert not [event for event in engine.advance(FOREVER) if event.is_last]


def test_an_abort_lets_the_next_in_after_the_step_in_progress() -> None:
    engine = make_engine(max_num_seqs=1)
    running, waiting = prompt(10, 1_000, name=1), prompt(10, name=2)
    engine.submit(running, 0)
    engine.submit(waiting, 0)
    engine.abort(running, 45 * MS)
    assert first_ms(engine.advance(FOREVER), waiting) == 70 + 10


def test_tokens_so_far_are_counted_by_steps() -> None:
    engine, generation = make_engine(), prompt(10, 5)
    engine.submit(generation, 0)
    seen = []
    for at_ms in (9, 10, 39, 40, 99, 130, 1_000):
        engine.advance(at_ms * MS)
        seen.append(engine.generated(generation))
    assert seen == [0, 1, 1, 2, 3, 5, 5]
    assert engine.stats.generation_tokens == 5
    assert engine.stats.itl_s.counts[3] + engine.stats.itl_s.counts[2] == 4


def test_a_million_decode_steps_are_one() -> None:
    engine = make_engine(blocks=100_000)
    engine.submit(prompt(10, 1_000_000), 0)
    events = engine.advance(FOREVER)
    assert events[-1].at_ns == (10 + 999_999 * 30) * MS


@dataclass
class Arrival:
    at_ns: int
    generation: Generation
    abort_ns: int | None


class StepByStep:
    """The rules, written plainly: one step at a time, every request touched in each."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits

    def run(self, arrivals: list[Arrival]) -> dict[int, tuple[int, int]]:
        """First and last token's time by arrival's place; arrivals in order of time, no two sharing a prefix."""
        limits, now = self.limits, 0
        pending = list(enumerate(arrivals))
        waiting: list[int] = []
        prefill: dict[int, int] = {}
        decode: dict[int, int] = {}
        seen: dict[int, list[int]] = {}
        while pending or waiting or prefill or decode:
            while pending and pending[0][1].at_ns < now:
                waiting.append(pending.pop(0)[0])
            if not (waiting or prefill or decode):
                now = pending[0][1].at_ns
                # Whoever comes first starts a step of his own; the others of that moment wait for its end.
                waiting.append(pending.pop(0)[0])
            budget, chunks = limits.max_num_batched_tokens - len(decode), {}
            for place, done in prefill.items():
                chunks[place] = min(budget, arrivals[place].generation.prompt_tokens - done)
                budget -= chunks[place]
            while waiting and budget and len(prefill) + len(decode) < limits.max_num_seqs:
                place = waiting.pop(0)
                prefill[place] = 0
                chunks[place] = min(budget, arrivals[place].generation.prompt_tokens)
                budget -= chunks[place]
            now += limits.itl_ns if decode else 0
            now += sum(round(tokens / limits.prefill_rate * 1e9) for tokens in chunks.values())
            for place in list(decode):
                decode[place] += 1
            for place, tokens in chunks.items():
                prefill[place] += tokens
                if prefill[place] == arrivals[place].generation.prompt_tokens:
                    del prefill[place]
                    decode[place] = 1
                    seen[place] = [now]
            for place in [p for p in decode if decode[p] == arrivals[p].generation.output_tokens]:
                del decode[place]
                seen[place].append(now)
        return {place: (first, last) for place, (first, last) in seen.items()}


sizes = st.tuples(st.integers(0, 400), st.integers(1, 200), st.integers(1, 60), st.none() | st.integers(0, 500))


def make_arrivals(drawn: list[tuple[int, int, int, int | None]], *, with_aborts: bool) -> list[Arrival]:
    now, arrivals = 0, []
    for number, (gap_ms, tokens, output, abort_ms) in enumerate(drawn):
        now += gap_ms * MS + 1
        abort_ns = None if abort_ms is None or not with_aborts else now + abort_ms * MS
        arrivals.append(Arrival(now, prompt(tokens, output, name=number), abort_ns))
    return arrivals


@given(st.lists(sizes, max_size=12))
@settings(max_examples=200, deadline=None)
def test_the_engine_equals_the_step_by_step_model(drawn: list[tuple[int, int, int, int | None]]) -> None:
    arrivals = make_arrivals(drawn, with_aborts=False)
    engine = make_engine()
    for arrival in arrivals:
        engine.submit(arrival.generation, arrival.at_ns)
    events = engine.advance(FOREVER)
    expected = StepByStep(LIMITS).run(arrivals)
    for place, arrival in enumerate(arrivals):
        got = (first_ms(events, arrival.generation), last_ms(events, arrival.generation))
        assert got == tuple(at / MS for at in expected[place])


@given(st.lists(sizes, max_size=10), st.integers(1, 97), st.integers(12, 40), st.integers(0, 300))
@settings(max_examples=200, deadline=None)
def test_how_often_it_is_advanced_changes_nothing(
    drawn: list[tuple[int, int, int, int | None]], tick_ms: int, spare_blocks: int, work_ms: int
) -> None:
    def run(*, ticks: bool) -> tuple[list[tuple[int, int, bool]], int, int]:
        arrivals = make_arrivals(drawn, with_aborts=True)
        places = {arrival.generation: place for place, arrival in enumerate(arrivals)}
        actions = [(a.at_ns, 0, place) for place, a in enumerate(arrivals)]
        actions += [(a.abort_ns, 1, place) for place, a in enumerate(arrivals) if a.abort_ns is not None]
        if ticks:
            actions += [(at * tick_ms * MS, 2, 0) for at in range(2_000 // tick_ms)]
        engine = make_engine(blocks=spare_blocks + 5)
        events: list[Event] = []
        for at_ns, what, place in sorted(actions):
            if what == 0:
                engine.submit(arrivals[place].generation, at_ns, work_ms * MS)
            elif what == 1:
                engine.abort(arrivals[place].generation, at_ns)
            else:
                events += engine.advance(at_ns)
        events += engine.advance(FOREVER)
        assert engine.cache.held_blocks == 0
        shown = [(event.at_ns, places[event.generation], event.is_last) for event in events]
        return shown, engine.stats.generation_tokens, engine.stats.prefix_hits

    assert run(ticks=True) == run(ticks=False)


def check_next_event(engine: Engine, now_ns: int) -> int:
    """Nothing happens before the next event's time; returns that time, after advancing to it."""
    next_ns, step_ns = engine.next_event_ns(), engine.next_step_ns()
    assert next_ns is not None
    assert step_ns is not None
    assert step_ns <= next_ns
    assert [event for event in engine.advance(max(now_ns, next_ns - 1)) if event.at_ns > now_ns] == []
    for event in engine.advance(next_ns):
        assert event.at_ns <= next_ns
    return next_ns


@given(st.lists(sizes, min_size=1, max_size=10), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_following_next_event_finds_every_event_at_its_time(
    drawn: list[tuple[int, int, int, int | None]], work_ms: int
) -> None:
    engine = make_engine()
    now_ns = 0
    for arrival in make_arrivals(drawn, with_aborts=False):
        while (next_ns := engine.next_event_ns()) is not None and next_ns < arrival.at_ns:
            now_ns = check_next_event(engine, now_ns)
        engine.submit(arrival.generation, arrival.at_ns, work_ms * MS)
        now_ns = arrival.at_ns
    while engine.next_event_ns() is not None:
        now_ns = check_next_event(engine, now_ns)
