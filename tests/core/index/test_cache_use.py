"""Why prompts' tokens were computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.index.cache_use import missed_tokens

TOKENS = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("best", "predicted", "actual", "missed"),
    [
        pytest.param(0, 0, 0, {"new": 1000, "elsewhere": 0, "gone": 0}, id="nobody has it"),
        pytest.param(800, 800, 800, {"new": 200, "elsewhere": 0, "gone": 0}, id="as predicted"),
        pytest.param(800, 0, 0, {"new": 200, "elsewhere": 800, "gone": 0}, id="sent to a cold worker"),
        pytest.param(800, 800, 100, {"new": 200, "elsewhere": 0, "gone": 700}, id="evicted"),
        pytest.param(800, 500, 400, {"new": 200, "elsewhere": 300, "gone": 100}, id="all three"),
        pytest.param(0, 0, 900, {"new": 100, "elsewhere": 0, "gone": 0}, id="better than predicted"),
        pytest.param(2000, 1500, 1000, {"new": 0, "elsewhere": 0, "gone": 0}, id="estimated too long"),
    ],
)
def test_each_computed_token_has_its_reason(
    best: float, predicted: float, actual: float, missed: dict[str, float]
) -> None:
    assert missed_tokens(1000, best, predicted, actual) == missed


@given(prompt=TOKENS, best=TOKENS, predicted=TOKENS, actual=TOKENS)
def test_reasons_together_are_what_was_computed(prompt: float, best: float, predicted: float, actual: float) -> None:
    missed = missed_tokens(prompt, best, predicted, actual)
    assert min(missed.values()) >= 0
    assert sum(missed.values()) == pytest.approx(prompt - min(actual, prompt))
