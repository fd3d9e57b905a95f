"""How a log is folded: what counts, in which order, and that it makes no difference when it was read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from router.sessions.context.copies import copy_of
from router.sessions.context.entry import Draft, Kind, decode
from router.sessions.context.history import History
from router.sessions.context.log import Setting
from router.sessions.context.messages import message_bytes
from tests.sessions.context.logs import deletion, history, history_of, message, said, texts, turn, user


class Life(NamedTuple):
    """Of one turn: how many messages it wrote, and whether it ever ended."""

    messages: int
    ends: bool


LIVES = st.lists(st.builds(Life, st.integers(1, 4), st.booleans()), max_size=7)


def interleaved(lives: list[Life], data: st.DataObject) -> list[bytes]:
    """Turns that write when they like, each its own entries in order."""
    waiting = [
        turn(number, *[message(user(f"{number}.{at}")) for at in range(life.messages)], ends=life.ends)
        for number, life in enumerate(lives, 1)
    ]
    log = []
    while waiting := [entries for entries in waiting if entries]:
        log.append(waiting[data.draw(st.integers(0, len(waiting) - 1))].pop(0))
    return log


def seen(read: History) -> tuple[Any, ...]:
    return (
        read.items,
        read.bodies,
        read.log.digests,
        read.log.last_answer,
        read.runs,
        read.log.system,
        read.log.tools,
        read.head,
    )


@given(LIVES, st.data())
def test_turns_that_ended_count_in_the_order_of_turns_however_they_wrote(
    lives: list[Life], data: st.DataObject
) -> None:
    read = history(interleaved(lives, data))
    wanted = [f"{number}.{at}" for number, life in enumerate(lives, 1) if life.ends for at in range(life.messages)]
    assert texts(read) == wanted
    assert len(read.log.digests) == len(set(read.log.digests)) == len(wanted)
    assert read.log.item_bytes == sum(map(len, read.bodies))
    assert sum(last - first + 1 for first, last in read.runs) == len(wanted)
    assert len(read.log.unfinished()) == sum(life.messages for life in lives if not life.ends)


@given(LIVES, st.lists(st.integers(0, 30), max_size=5), st.data())
def test_reading_a_log_in_pieces_is_reading_it_at_once(lives: list[Life], cuts: list[int], data: st.DataObject) -> None:
    log = interleaved(lives, data)
    read = history()
    edges = sorted({0, len(log), *(min(cut, len(log)) for cut in cuts)})
    for start, end in pairwise(edges):
        read.add(log[start:end], start + 1)
        read.chain(model="m", salt="", scope="", before=[])
    at_once = history(log)
    assert seen(read) == seen(at_once)
    assert read.log.bytes == at_once.log.bytes
    chains = [each.chain(model="m", salt="", scope="", before=[]).fingerprint() for each in (read, at_once)]
    assert chains[0] == chains[1]


@given(LIVES, st.integers(0, 30), st.data())
def test_entries_that_are_known_already_are_passed_over(lives: list[Life], again: int, data: st.DataObject) -> None:
    log = interleaved(lives, data)
    read = history(log)
    first = min(again, len(log))
    read.add(log[first:], first + 1)
    assert seen(read) == seen(history(log))


def test_the_last_answer_is_the_last_of_those_that_count() -> None:
    assert history_of().log.last_answer == -1
    assert history_of([user("a")]).log.last_answer == -1
    assert history_of([user("a"), said("b")], [user("c")]).log.last_answer == 1
    assert history(turn(1, user("a"), said("b")) + turn(2, user("c"), said("d"), ends=False)).log.last_answer == 1


def test_a_late_turn_takes_its_place_and_its_answer_is_not_the_last() -> None:
    first = turn(1, user("1"), said("one"))
    log = first[:1] + turn(2, user("2"), said("two"), user("more")) + first[1:]
    read = history(log)
    assert texts(read) == ["1", "one", "2", "two", "more"]
    assert read.log.last_answer == 3
    assert read.runs == [(1, 1), (5, 5), (2, 4)]


def system(text: str) -> Draft:
    return Draft(Kind.SYSTEM, msgspec.json.encode([{"role": "system", "content": text}]))


def test_what_stands_before_all_is_the_newest_turns_whenever_that_was_written() -> None:
    first = turn(1, system("old"), user("1"))
    read = history(first[:1] + turn(2, system("new"), user("2")) + first[1:])
    assert read.log.system.values == [{"role": "system", "content": "new"}]
    assert read.log.system.number == 2


def test_a_setting_of_a_turn_that_never_ended_does_not_hold() -> None:
    read = history(turn(1, system("held"), user("a")) + turn(2, system("lost"), user("b"), ends=False))
    assert read.log.system.values == [{"role": "system", "content": "held"}]


def test_tools_can_be_taken_back() -> None:
    tools = Draft(Kind.TOOLS, b'[{"type":"function"}]')
    assert history_of([tools, user("a")]).log.tools == Setting(1, b'[{"type":"function"}]')
    assert history_of([tools, user("a")], [Draft(Kind.TOOLS, b"[]"), user("b")]).log.tools.values == []


def test_a_deleted_message_is_left_out_and_others_stay() -> None:
    read = history_of([user("a"), said("b")], [user("c"), said("d")], [deletion(2)])
    assert texts(read) == ["a", "c", "d"]
    assert read.log.last_answer == 2
    assert read.runs == [(1, 1), (3, 4)]
    assert len(read.log.digests) == 3
    assert read.log.item_bytes == sum(map(len, read.bodies))


def test_a_deletion_of_what_is_not_there_changes_nothing() -> None:
    read = history_of([user("a")], [deletion(1)], [deletion(1)], [deletion(99)])
    assert read.log.is_empty
    assert read.log.last_answer == -1


def calling(*names: str, content: str | None = None) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": name, "type": "function", "function": {"name": name}} for name in names],
    }


def calls(read: History) -> list[list[str]]:
    return [[call["id"] for call in msgspec.json.decode(item.body).get("tool_calls", ())] for item in read.items]


def test_a_deleted_tool_call_leaves_the_numbers_of_the_others_as_they_were() -> None:
    asked: list[Any] = [user("a"), message(calling("x", "y", "z"))]
    assert calls(history_of(asked, [deletion(2, 1)])) == [[], ["y", "z"]]
    assert calls(history_of(asked, [deletion(2, 1)], [deletion(2, 2)])) == [[], ["z"]]
    assert calls(history_of(asked, [deletion(2, 1)], [deletion(2, 1)])) == [[], ["y", "z"]]
    assert history_of(asked, [deletion(2, 1)]).items[1].calls == (2, 3)


def test_a_message_goes_with_its_last_tool_call_unless_it_has_text() -> None:
    empty, full = calling("x", "y"), calling("x", content="so")
    assert calls(history_of([user("a"), empty], [deletion(2, 2)], [deletion(2, 1)])) == [[]]
    left = history_of([user("a"), full], [deletion(2, 1)])
    assert texts(left) == ["a", "so"]
    assert calls(left) == [[], []]


def test_a_deleted_text_leaves_the_tool_calls_and_reasoning_alone_is_no_message() -> None:
    asked: list[Any] = [user("a"), message({**calling("x", content="so"), "reasoning": "why"})]
    read = history_of(asked, [deletion(2, 0)])
    assert read.items[1].parts == (-1, 1)
    assert calls(read) == [[], ["x"]]
    assert texts(history_of(asked, [deletion(2, 0)], [deletion(2, 1)])) == ["a"]
    assert read.log.last_answer == 1


def test_a_deleted_tool_call_that_never_was_takes_nothing_with_it() -> None:
    assert calls(history_of([user("a"), calling("x")], [deletion(2, 2)])) == [[], ["x"]]


def test_what_is_counted_of_memory_grows_with_what_is_held() -> None:
    small, large = history_of([user("a")]), history_of([user("a" * 10_000)])
    assert large.log.bytes - small.log.bytes == 9_999


def test_a_copy_has_what_counts_and_what_stands_before_it() -> None:
    read = history_of([system("be brief"), user("a"), said("b")], [user("c"), said("d")], [deletion(2)])
    copied = history_of(copy_of(read, 4).drafts)
    assert [item.body for item in copied.items] == [item.body for item in read.items]
    assert copied.log.system.body == read.log.system.body
    assert copied.log.tools == read.log.tools == Setting()


def test_nulls_are_left_out_of_what_is_kept_but_an_empty_content_is_not() -> None:
    kept = message_bytes({"role": "assistant", "content": None, "refusal": None, "tool_calls": []})
    assert kept == b'{"role":"assistant","content":null,"tool_calls":[]}'


def test_a_turns_next_entry_follows_those_that_it_wrote_before() -> None:
    begun = turn(3, user("a"), ends=False)
    read = history(begun)
    read.add(turn(3, said("b"), link=read.log.link_of(3)), 2)
    assert texts(read) == ["a", "b"]
    assert read.log.link_of(3) is None
    assert decode(begun[0]).link == history(begun).log.link_of(3)
