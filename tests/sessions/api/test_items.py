"""A page of a long log costs what is on it."""

from __future__ import annotations

from router.core.request.request import Tenant
from router.sessions.api.items import MAX_INSERTED, items_of_turn, position, shown_items
from router.sessions.context.entry import Draft, Kind, encode_turn
from router.sessions.context.history import History

SID, OWNER = "a" * 32, Tenant("ann")


def history_of(*turns: tuple[int, int, bool]) -> History:
    """``(turn, messages, ends)``, in the order in which they were written."""
    history = History(SID, OWNER, "g")
    for turn, messages, ends in turns:
        drafts = [Draft(Kind.MESSAGE, b'{"role":"user","content":"x"}')] * messages
        entries, _ = encode_turn(drafts, sid=SID, owner=OWNER, turn=turn, at=0.0, link=None, ends=ends)
        history.add(entries, history.head + 1)
    return history


def shown(history: History) -> list[tuple[int, int, str]]:
    return [(each.item.turn, each.item.number, each.more["status"]) for each in shown_items(history)]


def test_turns_that_have_not_ended_stand_where_they_began() -> None:
    history = history_of((2, 1, False), (1, 2, True), (4, 1, True), (3, 1, False))
    assert shown(history) == [
        (1, 2, "completed"),
        (1, 3, "completed"),
        (2, 1, "incomplete"),
        (3, 5, "incomplete"),
        (4, 4, "completed"),
    ]


def test_many_that_have_not_ended_are_in_the_same_order_as_few() -> None:
    history = history_of(
        (1, 1, True), *((turn, 1, False) for turn in range(2, MAX_INSERTED + 5)), (MAX_INSERTED + 5, 1, True)
    )
    assert shown(history) == sorted(shown(history))
    assert len(shown(history)) == MAX_INSERTED + 5


def test_a_message_is_found_by_its_number_also_after_a_late_end() -> None:
    history = history_of((2, 3, True), (1, 2, True))
    marked = shown_items(history)
    assert [marked[position(marked, number)].item.number for number in range(1, 6)] == [1, 2, 3, 4, 5]
    assert position(marked, 6) == position(marked, 0) == len(marked)


def test_the_messages_of_a_turn_are_in_their_order() -> None:
    history = history_of((1, 2, True), (2, 3, True), (3, 1, True))
    assert [item.number for item in items_of_turn(history, 2)] == [3, 4, 5]
