"""The table of a connection's states: where it can get to, and what ends it."""

from __future__ import annotations

from router.upstream.connection_state import TRANSITIONS, Event, State

FINAL = {State.DONE, State.FAILED, State.ABORTED}


def test_every_state_can_be_reached_and_every_one_can_be_aborted() -> None:
    reached = {after for row in TRANSITIONS.values() for after in row.values()}
    assert reached == set(State) == set(TRANSITIONS)
    assert all(TRANSITIONS[state][Event.ABORT] in FINAL for state in State)


def test_nothing_moves_a_connection_that_has_ended() -> None:
    assert all(TRANSITIONS[state][event] is state for state in FINAL for event in Event)


def test_a_failure_after_the_last_event_costs_the_client_nothing() -> None:
    assert TRANSITIONS[State.TAIL][Event.FAIL] is State.DONE
    assert all(TRANSITIONS[state][Event.FAIL] is State.FAILED for state in (State.HEAD, State.WHOLE, State.RELAY))


def test_only_a_clean_end_makes_a_connection_idle_again() -> None:
    assert {event for row in TRANSITIONS.values() for event, after in row.items() if after is State.IDLE} == {
        Event.END_CLEAN
    }
