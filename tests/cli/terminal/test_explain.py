"""A request's way in words."""

from __future__ import annotations

import pytest

from router.cli.terminal.explain import BREAKS, FAILURES, REASONS, explain
from router.core.request.attempt import CannotConnect, Failure, ReplyTooLarge, WorkerDied, WorkerErred, WorkerSilent
from router.core.tenants.memory import MemoryFull
from router.policies import POLICIES, make_policy
from router.proxy.flight import CAUSES
from tests.cli.terminal.shown import a_decision, an_attempt


def test_an_ordinary_request_is_told() -> None:
    assert explain(a_decision()) == (
        "r-1: /v1/chat/completions, model sim\n"
        "  ended      ok, status 200, after 1.25 s\n"
        "  worker     w-1, cache_aware's first choice (cached: it holds the most of the prompt)\n"
        "  prompt     1,000 tokens; 960 expected in its cache, 976 were\n"
        "  first token 52.5 ms; of it 0.4 ms until the decision, 0.0 ms of which in the queue\n"
    )


def test_every_worker_that_was_tried_is_named_and_how_it_failed() -> None:
    text = explain(
        a_decision(
            worker="w-4",
            tried=[
                an_attempt("w-1", "connect"),
                an_attempt("w-2", "busy"),
                an_attempt("w-3", "died", broke=True),
                an_attempt("w-4", "timeout", broke=True),
                an_attempt("w-5", "died"),
            ],
            resumptions=[
                {"cause": "died", "outcome": "exact", "gap_s": 0.1},
                {"cause": "timeout", "outcome": "failed", "gap_s": 2.0},
            ],
            given_up=True,
        )
    )
    assert "worker     w-4; cache_aware's first choice was w-1 (cached: it holds the most of the prompt)\n" in text
    assert text[text.index("  attempt 1") :] == (
        "  attempt 1  w-1 could not be connected to\n"
        "  attempt 2  w-2 said that it is busy\n"
        "  attempt 3  w-3 closed the connection during its stream\n"
        "             another worker continued after the exact tokens, 100.0 ms later\n"
        "  attempt 4  w-4 sent nothing for too long during its stream\n"
        "             no worker could continue it, and it ended with an error, 2.00 s later\n"
        "  attempt 5  w-5 closed the connection before its first byte\n"
        "  given up   workers died under it, one after another; this request may be what kills them\n"
    )


def test_the_worker_that_went_on_with_a_stream_is_not_called_the_first_choice() -> None:
    stop = {"cause": "died", "outcome": "exact", "gap_s": 0.0067}
    tried = [an_attempt("w-1", "died", broke=True), an_attempt("w-2")]
    text = explain(a_decision(worker="w-2", tried=tried, resumptions=[stop]))
    assert "w-2; cache_aware's first choice was w-1" in text
    assert "attempt 1  w-1 closed the connection during its stream\n" in text
    assert "attempt 2  w-2 answered\n" in text


def test_a_first_choice_that_was_not_asked_is_told_so() -> None:
    text = explain(a_decision(first_choice="w-9"))
    assert (
        "w-1; cache_aware's first choice was w-9 (cached: it holds the most of the prompt), which had no seat" in text
    )


def test_what_is_not_known_is_not_told_as_zero() -> None:
    assert "it did not report how many were" in explain(a_decision(actual_cached_tokens=None))
    unanswered = explain(
        a_decision(prompt_tokens=0, time_to_first_token_s=0.0, status=502, tried=[an_attempt("w-1", "died")])
    )
    assert "of unknown length" in unanswered
    assert "no answer  after 1.25 s" in unanswered
    assert "first token" not in unanswered


@pytest.mark.parametrize(
    ("status", "outcome", "why"),
    [
        (404, "model_not_found", "refused before a worker was chosen"),
        (429, "rate_limit_exceeded", "refused before a worker was chosen"),
        (503, "overloaded", "refused before a worker was chosen"),
        (499, "client_gone", "its client left before a worker was chosen"),
    ],
)
def test_a_request_that_no_worker_had_is_told_so_and_nothing_else(status: int, outcome: str, why: str) -> None:
    nobody = {"worker": "", "first_choice": "", "reason": "", "tried": [], "prompt_tokens": 0}
    text = explain(a_decision(status=status, outcome=outcome, time_to_first_token_s=0.0, **nobody))
    assert f"worker     none: {why}" in text
    assert "prompt" not in text
    assert "token" not in text


def test_a_whole_answer_is_not_called_a_first_token() -> None:
    for members in ({"stream": False}, {"status": 400, "outcome": "client_error"}):
        text = explain(a_decision(**members))
        assert "whole answer after 52.5 ms" in text
        assert "first token" not in text


@pytest.mark.parametrize("name", POLICIES)
def test_every_reason_of_every_policy_has_words(name: str) -> None:
    from random import Random

    assert make_policy(name, {}, Random(1)).reasons <= REASONS.keys()


def test_what_clients_write_does_not_rule_the_terminal() -> None:
    assert "\x1b" not in explain(a_decision(model="\x1b[2J"))


def test_every_cause_of_a_failed_attempt_has_words() -> None:
    causes = {failure.cause for failure in (WorkerDied, CannotConnect, WorkerErred, WorkerSilent, ReplyTooLarge)}
    assert causes | {Failure.BUSY, Failure.NO_MODEL, MemoryFull.code} <= FAILURES.keys()
    assert set(CAUSES.values()) == BREAKS.keys()
