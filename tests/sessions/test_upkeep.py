"""Histories that are kept within their windows: what is cut when, that no turn waits for it, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from router.context.history import History
from router.context.provenance import ACKNOWLEDGEMENT, recalled_numbers
from router.context.view import Wishes
from router.core.errors import SessionNotFound, WorkerError
from router.core.tenant import make_caller
from router.sessions.histories import Histories
from router.sessions.hot import HotHistories
from router.sessions.janitor import Chore
from router.sessions.store import Sid
from router.sessions.views import Look
from tests.sessions.desk import ACME, SID, Desk, FakeClient, user
from tests.sessions.upkeep import FakeWriter, SlowWriter, WordIndex, upkeep_of

LONG = "x" * 400
"""About 100 tokens; so is its answer."""


async def talk(desk: Desk, turns: int, **wishes: Any) -> None:
    """Turns, with the janitor behind each."""
    for number in range(turns):
        await desk.take(user(f"{number} {LONG}"), **wishes)
        await clean(desk)


async def pile_up(desk: Desk, turns: int) -> None:
    """Turns that the janitor has yet to look behind."""
    for number in range(turns):
        await desk.take(user(f"{number} {LONG}"))


async def clean(desk: Desk) -> None:
    """The janitor's chores, all of them."""
    janitor = desk.turns.upkeep.janitor
    while janitor._waiting:
        sid, chore = janitor._waiting.popitem()
        assert sid == chore.sid
        await janitor.do(chore)


def results(desk: Desk) -> dict[str, int]:
    return {result: count for result, count in desk.turns.upkeep.janitor.results.items() if count}


def shown(desk: Desk) -> list[str]:
    return [str(message["content"]) for message in desk.dispatch.sent()]


async def history_of(desk: Desk, sid: Sid = SID) -> History:
    """As a replica reads it that knows nothing."""
    fresh = Histories(desk.store, HotHistories(1 << 20), lambda: desk.now)
    return (await fresh.load(sid, ACME.rules.tenant))[0]


def window_desk(**more: Any) -> Desk:
    return Desk(**{"strategy": "window", "high_tokens": 1000, "low_tokens": 510, **more})


def summary_desk(writer: FakeWriter | None = None, **more: Any) -> Desk:
    return Desk(**{"strategy": "summary", "high_tokens": 1000, "low_tokens": 510, "writer": writer, **more})


async def test_a_history_below_its_mark_is_sent_whole() -> None:
    desk = window_desk()
    await talk(desk, 4)
    assert len(shown(desk)) == 7
    assert results(desk) == {}


async def test_a_history_that_passes_its_mark_is_cut_behind_the_turn_and_the_cut_is_held() -> None:
    desk = window_desk()
    await talk(desk, 6)
    assert results(desk) == {"cut": 1}
    sent = []
    for number in range(2):
        await desk.take(user(f"more {number}"))
        sent.append(shown(desk))
    assert sent[0][:2] == ["[6 earlier messages are left out here.]", ACKNOWLEDGEMENT]
    assert sent[0][2].startswith("3 x")
    assert sent[1][: len(sent[0])] == sent[0], "between two cuts a prompt only grows at its end"
    assert len(await desk.texts()) == 16, "the log has everything"


async def test_a_prompt_that_does_not_fit_is_cut_before_it_is_sent_and_no_turn_waits_for_notes() -> None:
    writer = FakeWriter()
    desk = summary_desk(writer, window=1000, high_tokens=10_000)
    await pile_up(desk, 5)
    assert shown(desk)[0].startswith("[4 earlier messages are left out")
    assert writer.sources == []
    assert desk.turns.upkeep.views.cuts == {"ceiling": 1, "cold": 0}
    await clean(desk)
    assert results(desk) == {"pending": 1}
    await desk.take(user("next"))
    assert shown(desk)[0].startswith("[4 earlier messages"), "notes that came late do not break a prefix once more"
    await desk.take(user(LONG))
    await desk.take(user(LONG))
    assert shown(desk)[0].startswith("[Notes on the earlier conversation.")


async def test_nothing_is_cut_for_a_message_that_fits_no_window() -> None:
    desk = window_desk(window=1000, high_tokens=10_000)
    await pile_up(desk, 3)
    await desk.take(user("y" * 8000))
    assert len(shown(desk)) == 7, "the worker says that it is too long"
    assert (await history_of(desk)).view.elided == 0


async def test_a_cold_prefix_is_cut_early_and_a_warm_one_is_not() -> None:
    for cached, is_cut in ((0.0, True), (1e9, False)):
        desk = window_desk(cached=cached)
        await talk(desk, 4)
        desk.now += 600.0
        await desk.take(user("after a while"))
        assert shown(desk)[0].startswith("[4 earlier") == is_cut
        assert desk.turns.upkeep.views.cuts["cold"] == is_cut


async def test_a_cold_prefix_of_a_session_that_was_just_used_is_left_alone() -> None:
    desk = window_desk(cached=0.0)
    await talk(desk, 4)
    await desk.take(user("at once"))
    assert len(shown(desk)) == 9


async def test_a_replica_that_did_not_send_the_turn_before_knows_nothing_of_caches() -> None:
    desk = window_desk()
    await talk(desk, 4)
    desk.now += 600.0
    other = Desk(desk.store, strategy="window", high_tokens=1000, low_tokens=510, cached=0.0)
    other.now = desk.now
    await other.take(user("there"))
    assert len(shown(other)) == 9


async def test_without_a_strategy_nothing_is_cut() -> None:
    desk = Desk(strategy="none", high_tokens=1000, low_tokens=510, window=900)
    await talk(desk, 8)
    assert len(shown(desk)) == 15
    assert results(desk) == {}


@pytest.mark.parametrize("whose", ["request", "session", "tenant"])
async def test_a_narrower_wish_goes_before_a_wider_one(whose: str) -> None:
    desk = Desk(strategy="none")
    caller, wishes = ACME, Wishes()
    small = Wishes(strategy="window", high_tokens=500, low_tokens=300)
    if whose == "tenant":
        rules = msgspec.structs.replace(
            ACME.rules, context_strategy="window", context_high_tokens=500, context_low_tokens=300
        )
        caller = make_caller(rules, b"a secret of the tests")
    for number in range(4):
        if whose == "session" and number == 1:
            history, _ = await desk.histories.load(SID, ACME.rules.tenant)
            assert await desk.histories.commit_view(history, msgspec.structs.replace(history.view, wishes=small))
        await desk.take(user(f"{number} {LONG}"), caller=caller, context=small if whose == "request" else wishes)
        await clean(desk)
    assert results(desk).get("cut")


async def test_notes_tell_of_what_was_cut() -> None:
    writer = FakeWriter(["they spoke of x", "and of more x"])
    desk = summary_desk(writer)
    await talk(desk, 6)
    assert results(desk) == {"told": 1}
    assert [item.number for item in writer.sources[0].items] == [1, 2, 3, 4, 5, 6]
    await desk.take(user("next"))
    assert "they spoke of x" in shown(desk)[0]
    assert "left out" not in shown(desk)[0]
    await talk(desk, 4)
    assert writer.sources[1].items[0].number == 7, "nothing is told of twice"
    await desk.take(user("next"))
    first, second = shown(desk)[0].index("they spoke of x"), shown(desk)[0].index("and of more x")
    assert first < second, "notes are frozen: new ones come behind them"


async def test_notes_of_many_notes_take_their_place() -> None:
    writer = FakeWriter([f"notes {number}" for number in range(9)])
    desk = summary_desk(writer)
    while not (writer.sources and writer.sources[-1].notes):
        await talk(desk, 1)
    assert [segment.text for segment in writer.sources[-1].notes] == [f"notes {number}" for number in range(8)]
    history = await history_of(desk)
    assert [segment.text for segment in history.view.segments] == ["notes 8"]
    assert history.view.segments[0].since == (0, 0)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", "rejected_empty"),
        (" \n", "rejected_empty"),
        ("I'm sorry, I can't do that.", "rejected_refusal"),
        ("long " * 1000, "rejected_longer"),
        (WorkerError("it died"), "failed"),
    ],
)
async def test_bad_notes_leave_the_old_view_and_are_tried_again_later(text: str | Exception, result: str) -> None:
    writer = FakeWriter([text, "good notes"])
    desk = summary_desk(writer)
    await talk(desk, 5)
    assert results(desk) == {result: 1}
    assert len((await history_of(desk)).bodies) == 10
    await talk(desk, 1)
    assert len(writer.sources) == 1, "not at once"
    desk.now += 11.0
    await talk(desk, 1)
    assert results(desk)["told"] == 1


async def test_notes_that_fail_again_and_again_are_asked_for_less_and_less_often() -> None:
    writer = FakeWriter([""])
    desk = summary_desk(writer)
    for _ in range(40):
        await talk(desk, 1)
        desk.now += 5.0
    assert 3 <= len(writer.sources) <= 6


def chore(desk: Desk) -> Chore:
    (found,) = desk.turns.upkeep.janitor._waiting.values()
    return found


async def test_a_client_that_resends_everything_is_recognised_behind_a_cut() -> None:
    desk = window_desk()
    await talk(desk, 6)
    history = await history_of(desk)
    whole = [msgspec.json.decode(item.body) for item in history.items]
    await desk.take(*whole, user("new"))
    assert (await desk.texts())[-2] == "new"
    assert len(await desk.texts()) == 14


async def test_the_prompt_of_a_turn_can_be_had_again_whatever_was_cut_since() -> None:
    desk = window_desk()
    await talk(desk, 12)
    for number, request in enumerate(desk.dispatch.asked, 1):
        told = await desk.turns.prompt_of(SID, ACME, number)
        assert told is not None
        assert msgspec.json.decode(told)["messages"] == msgspec.json.decode(request.body)["messages"]


async def test_a_budget_that_is_spent_writes_no_more_notes_that_day() -> None:
    writer = FakeWriter()
    desk = summary_desk(writer)
    rules = msgspec.structs.replace(ACME.rules, notes_tokens_per_day=700)
    caller = make_caller(rules, b"a secret of the tests")
    await talk(desk, 12, caller=caller)
    assert results(desk)["told"] == 1
    assert results(desk)["over_budget"] >= 1
    assert 0 < (desk.turns.upkeep.janitor.budget.left(rules) or 0) < 100
    desk.now += 86_400.0
    assert desk.turns.upkeep.janitor.budget.left(rules) == 700


async def test_a_turn_grows_a_history_by_its_question_and_its_answer() -> None:
    desk = window_desk(high_tokens=100_000)
    await talk(desk, 60)
    assert desk.turns.upkeep.views.economy.growth == pytest.approx(202, rel=0.15)


async def test_what_waits_for_the_janitor_is_bounded() -> None:
    desk = window_desk()
    janitor = upkeep_of(desk.histories, lambda: desk.now, max_waiting=2).janitor
    for name in "abca":
        janitor.want(Sid(name * 32), desk.ask(None), Look(0, 0))
    assert janitor.waiting == 2
    assert janitor.results["dropped"] == 1


async def test_janitors_that_run_take_each_session_once_at_a_time() -> None:
    writer = SlowWriter()
    desk = summary_desk(writer)
    janitor = desk.turns.upkeep.janitor
    running = [asyncio.create_task(janitor.run()) for _ in range(3)]
    await pile_up(desk, 8)
    await writer.asked.wait()
    writer.go.set()
    while janitor.waiting or janitor._at_work:
        await asyncio.sleep(0)
    numbers = [item.number for source in writer.sources for item in source.items]
    assert numbers == sorted(set(numbers)), "nothing was told of twice"
    assert janitor.results["raced"] == 0
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_store_that_is_away_fails_a_chore_and_nothing_else() -> None:
    desk = window_desk()
    await pile_up(desk, 6)
    desk.store.fails["before load"] = 1
    await desk.turns.upkeep.janitor.do(chore(desk))
    assert results(desk) == {"failed": 1}
    client: FakeClient = await desk.take(user("next"))
    assert client.text == "to next"


def recall_desk(index: WordIndex, **more: Any) -> Desk:
    return Desk(**{"strategy": "recall", "high_tokens": 1000, "low_tokens": 510, "index": index, **more})


async def test_what_left_the_prompt_is_recalled_beside_the_question_and_stays_there() -> None:
    desk = recall_desk(WordIndex())
    await desk.take(user(f"my cat is called Mimi {LONG}"))
    await talk(desk, 5)
    await desk.take(user("what was the cat called"))
    asked = shown(desk)[-1]
    assert asked.startswith("[From earlier in this conversation")
    assert "my cat is called Mimi" in asked
    assert asked.endswith("\n\nwhat was the cat called")
    await desk.take(user("thanks"))
    assert shown(desk)[-3] == asked, "as it was sent"
    assert (await desk.texts())[-4] == "what was the cat called", "the message is what the client said"


async def test_what_was_recalled_is_neither_indexed_nor_told_of_in_notes() -> None:
    index, writer = WordIndex(), FakeWriter()
    desk = Desk(strategy="hybrid", high_tokens=1000, low_tokens=510, index=index, writer=writer)
    await desk.take(user(f"my cat is called Mimi {LONG}"))
    await talk(desk, 5)
    await desk.take(user("what was the cat called"))
    assert "Mimi" in shown(desk)[-1]
    await talk(desk, 6)
    (indexed,) = index.kept.values()
    assert "what was the cat called" in indexed.values()
    asked = [str(item.body) for source in writer.sources for item in source.items if item.role == "user"]
    assert any("what was the cat called" in body for body in asked)
    assert not any("[From earlier" in body for body in asked)


async def test_a_question_goes_alone_when_nothing_can_be_searched() -> None:
    index = WordIndex()
    desk = recall_desk(index)
    await desk.take(user(f"my cat is called Mimi {LONG}"))
    await talk(desk, 5)
    index.is_away = True
    await desk.take(user("what was the cat called"))
    assert shown(desk)[-1] == "what was the cat called"
    assert desk.turns.upkeep.recaller.results["unavailable"] == 1


async def test_a_session_that_is_deleted_leaves_nothing_to_be_found() -> None:
    index = WordIndex()
    desk = recall_desk(index)
    desk.histories.on_deleted = desk.turns.upkeep.recaller.forget
    await desk.take(user(f"my cat is called Mimi {LONG}"))
    await talk(desk, 5)
    other = Desk(desk.store)
    assert index.kept
    await other.histories.delete(SID, ACME.rules.tenant)  # whose mirror is another
    desk.histories.hot.forget(SID)
    await desk.take(user(f"a new life {LONG}"))
    await talk(desk, 5)
    await desk.take(user("what was the cat called"))
    assert "Mimi" not in shown(desk)[-1]
    await desk.histories.delete(SID, ACME.rules.tenant)
    assert [texts for texts in index.kept.values() if any("a new life" in text for text in texts.values())] == []


async def test_what_is_recalled_is_no_more_than_its_bound() -> None:
    desk = recall_desk(WordIndex())
    await talk(desk, 8)
    await desk.take(user(f"0 1 2 {LONG}"))
    block = shown(desk)[-1].split("\n\n0 1 2")[0]
    assert 0 < len(block) <= 100 * 4


async def test_what_is_recalled_is_bounded_by_its_tokens_in_any_script() -> None:
    desk = recall_desk(WordIndex())
    for number in range(8):
        await desk.take(user(f"{number} {'窓に収まる' * 30}"))
        await clean(desk)
    await desk.take(user("0 1 2 3"))
    block = shown(desk)[-1].split("\n\n0 1 2 3")[0]
    assert 50 * 4 < len(block.encode()) <= 100 * 4


async def test_what_the_prompt_has_beside_an_earlier_question_is_not_recalled_again() -> None:
    desk = recall_desk(WordIndex())
    await desk.take(user(f"my cat is called Mimi {LONG}"))
    await talk(desk, 5)
    await desk.take(user("what was the cat called"))
    await desk.take(user("the cat once more"))
    first, second = recalled_numbers(shown(desk)[-3]), recalled_numbers(shown(desk)[-1])
    assert first
    assert second
    assert not first & second


async def test_a_session_that_cannot_be_read_in_time_can_be_deleted() -> None:
    desk = window_desk()
    await desk.take(user("one"))
    other = Desk(desk.store)
    desk.store.fails["before load"] = 1
    assert await other.histories.delete(SID, ACME.rules.tenant)
    with pytest.raises(SessionNotFound):
        await other.histories.load(SID, ACME.rules.tenant)
