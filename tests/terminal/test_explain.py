"""A request's way in words."""

from __future__ import annotations

import pytest

from router.policies import POLICIES, PolicySettings
from router.terminal.explain import REASONS, explain
from tests.terminal.shown import a_decision


def test_an_ordinary_request_is_told() -> None:
    assert explain(a_decision()) == (
        "r-1: /v1/chat/completions, model sim\n"
        "  ended      ok, status 200, after 1.25 s\n"
        "  worker     w-1, cache_aware's first choice (cached: it holds the most of the prompt)\n"
        "  prompt     1,000 tokens; 960 expected in its cache, 976 were\n"
        "  first token 52.5 ms; of it 0.4 ms until the decision, 0.0 ms of which in the queue\n"
    )


def test_retries_and_resumptions_are_told() -> None:
    text = explain(
        a_decision(
            retries=["connect", "busy"],
            resumptions=[
                {"cause": "died", "outcome": "exact", "gap_s": 0.1},
                {"cause": "timeout", "outcome": "failed", "gap_s": 2.0},
            ],
            given_up=True,
        )
    )
    assert "behind cache_aware's first choice (cached: it holds the most of the prompt), which failed" in text
    assert "attempt 1  failed: the worker could not be connected to" in text
    assert "attempt 2  failed: the worker said that it is busy" in text
    assert "broke (died); another went on behind the very tokens, 100.0 ms later" in text
    assert "broke (timeout); nobody could go on with it, and it was ended with an error, 2.00 s later" in text
    assert "given up" in text


def test_what_is_not_known_is_not_told_as_zero() -> None:
    assert "it did not say how many were" in explain(a_decision(actual_cached_tokens=None))
    assert "did not say how long" in explain(a_decision(prompt_tokens=0))
    assert "none was reached" in explain(a_decision(worker="", reason="", status=503, outcome="overloaded"))


@pytest.mark.parametrize("name", POLICIES)
def test_every_reason_of_every_policy_has_words(name: str) -> None:
    from random import Random

    assert POLICIES[name](PolicySettings(), Random(1)).reasons <= REASONS.keys()


def test_what_clients_write_does_not_rule_the_terminal() -> None:
    assert "\x1b" not in explain(a_decision(model="\x1b[2J"))
