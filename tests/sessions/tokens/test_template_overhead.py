"""What a chat template adds is learnt from what workers count."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.sessions.tokens.template_overhead import BELIEVED, MAX_FIXED, MAX_PER_MESSAGE, OverheadFit

counts = st.integers(1, 200)


def learn(fit: OverheadFit, messages: Iterable[int], per_message: float, fixed: float) -> OverheadFit:
    for each in messages:
        fit.add(each, per_message * each + fixed)
    return fit


@given(st.integers(), st.integers(3, 200))
def test_a_template_of_four_a_message_and_eleven_is_found_within_five_percent(seed: int, longest: int) -> None:
    chance = Random(seed)
    learnt = learn(OverheadFit(), [chance.randint(1, longest) for _ in range(80)], 4.0, 11.0).overhead
    assert learnt.per_message == pytest.approx(4.0, rel=0.05)
    assert learnt.fixed == pytest.approx(11.0, rel=0.05)


@given(st.floats(0.0, 16.0), st.floats(0.0, 200.0), st.integers())
def test_any_template_is_found_from_sessions_that_grow(per_message: float, fixed: float, seed: int) -> None:
    chance = Random(seed)
    seen = [messages for _ in range(20) for messages in range(1, chance.randrange(4, 30), 2)]
    learnt = learn(OverheadFit(), seen, per_message, fixed).overhead
    assert learnt.per_message == pytest.approx(per_message, rel=0.05, abs=0.15)
    assert learnt.fixed == pytest.approx(fixed, rel=0.05, abs=0.6)


@given(counts, st.floats(0.0, 16.0), st.floats(0.0, 200.0))
def test_where_all_prompts_have_equally_many_messages_their_sum_is_right(
    messages: int, per_message: float, fixed: float
) -> None:
    learnt = learn(OverheadFit(), [messages] * 200, per_message, fixed).overhead
    assert learnt.of(messages) == pytest.approx(per_message * messages + fixed, rel=0.05, abs=0.6)


@given(st.integers(), st.sampled_from((-2000.0, 300.0, 900.0, 4000.0, 1e9)))
@settings(max_examples=30)
def test_every_tenth_prompt_may_be_odd(seed: int, oddity: float) -> None:
    fit, chance = OverheadFit(), Random(seed)
    for turn in range(300):
        messages = chance.randrange(1, 40)
        fit.add(messages, 4.0 * messages + 11.0 + (oddity if turn % 10 == 3 else chance.choice((-1.0, 0.0, 1.0))))
    for messages in (1, 20, 40):
        assert fit.overhead.of(messages) == pytest.approx(4.0 * messages + 11.0, abs=8.0)


def test_another_template_is_learnt_after_the_first() -> None:
    fit = learn(OverheadFit(), list(range(1, 40, 2)) * 10, 4.0, 11.0)
    learn(fit, list(range(1, 40, 2)) * 25, 7.0, 900.0)
    assert fit.overhead.per_message == pytest.approx(7.0, rel=0.05)
    assert fit.overhead.fixed == pytest.approx(900.0, rel=0.05)


@given(st.lists(st.tuples(st.integers(-5, 10**6), st.floats(-1e12, 1e12)), max_size=60))
def test_no_samples_make_a_template_cost_less_than_nothing_or_without_bound(samples: list[tuple[int, float]]) -> None:
    fit = OverheadFit()
    for messages, tokens in samples:
        fit.add(messages, tokens)
    assert 0.0 <= fit.overhead.per_message <= MAX_PER_MESSAGE
    assert 0.0 <= fit.overhead.fixed <= MAX_FIXED


def test_before_anything_was_seen_there_is_a_belief() -> None:
    assert OverheadFit().overhead == BELIEVED
