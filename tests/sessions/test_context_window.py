"""Histories that are kept within their windows: what is cut when, that no turn waits for it, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from router.config.sessions import SessionsConfig
from router.core.errors import ContextTooLong, RouterError, SessionFull, SessionNotFound, WorkerError
from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.request import Request, Tenant
from router.core.tenants.tenant import TenantRules, make_caller
from router.proxy.internal_client import LOW_PRIORITY
from router.proxy.ports import Client
from router.sessions import compactor as compactor_module
from router.sessions.api.chat_requests import read_chat
from router.sessions.compactor import CompactionJob
from router.sessions.context.compaction import Source, source_of
from router.sessions.context.entry import Draft, Kind
from router.sessions.context.history import History
from router.sessions.context.prompt import Incoming
from router.sessions.context.provenance import ACKNOWLEDGEMENT, recalled_numbers
from router.sessions.context.view import ContextOverrides, View
from router.sessions.copying import copy_session
from router.sessions.histories import Histories
from router.sessions.history_cache import HistoryCache
from router.sessions.planner import TurnRequest
from router.sessions.stores.contract import EMPTY, Sid
from router.sessions.summaries import FleetSummaryWriter, Written
from router.sessions.views import ViewPlan
from tests.sessions.desk import ACME, LIMITS, SID, Desk, FakeClient, FakeDispatch, user
from tests.sessions.kept_histories import FakeWriter, SlowWriter, WordIndex, context_window_of

LONG = "x" * 400
"""About 100 tokens; so is its answer."""


async def talk(desk: Desk, turns: int, **overrides: Any) -> None:
    """Turns, with the compactor behind each."""
    for number in range(turns):
        await desk.take(user(f"{number} {LONG}"), **overrides)
        await clean(desk)


async def pile_up(desk: Desk, turns: int) -> None:
    """Turns with jobs that wait for the compactor."""
    for number in range(turns):
        await desk.take(user(f"{number} {LONG}"))


async def clean(desk: Desk) -> None:
    """Runs all jobs of the compactor."""
    compactor = desk.turns.context_window.compactor
    while compactor.jobs:
        sid, job = compactor.jobs.popitem()
        assert sid == job.sid
        await compactor.do(job)


def results(desk: Desk) -> dict[str, int]:
    return {result: count for result, count in desk.turns.context_window.compactor.results.items() if count}


def shown(desk: Desk) -> list[str]:
    return [str(message["content"]) for message in desk.dispatch.sent()]


async def history_of(desk: Desk, sid: Sid = SID) -> History:
    """As a replica reads it that knows nothing."""
    fresh = Histories(desk.store, HistoryCache(1 << 20), lambda: desk.now)
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


async def test_a_history_that_passes_its_mark_is_cut_after_the_turn_and_the_cut_is_held() -> None:
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


async def test_a_prompt_that_does_not_fit_is_cut_before_it_is_sent_and_no_turn_waits_for_summaries() -> None:
    writer = FakeWriter()
    desk = summary_desk(writer, window=1000, high_tokens=10_000)
    await pile_up(desk, 5)
    assert shown(desk)[0].startswith("[4 earlier messages are left out")
    assert writer.sources == []
    assert desk.turns.context_window.views.cuts == 1
    await clean(desk)
    assert results(desk) == {"pending": 1}
    await desk.take(user("next"))
    assert shown(desk)[0].startswith("[4 earlier messages"), "notes that came late do not break a prefix once more"
    await desk.take(user(LONG))
    await desk.take(user(LONG))
    assert shown(desk)[0].startswith("[Notes on the earlier conversation.")


async def test_cuts_at_the_same_time_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = window_desk(window=900, high_tokens=10_000)
    commit, both = desk.histories.commit_view, asyncio.Barrier(2)

    async def commit_together(history: History, view: View) -> bool:
        await both.wait()
        return await commit(history, view)

    monkeypatch.setattr(desk.histories, "commit_view", commit_together)
    for number in range(5):
        await asyncio.gather(*(desk.take(user(f"{number} {LONG}"), sid=sid) for sid in (SID, Sid("b" * 32))))
    assert desk.turns.context_window.views.cuts == 2


async def test_nothing_is_cut_for_a_message_that_fits_no_window() -> None:
    desk = window_desk(window=1000, high_tokens=10_000)
    await pile_up(desk, 1)
    await desk.take(user("y" * 4200))
    assert len(shown(desk)) == 3, "the worker says that it is too long"
    assert (await history_of(desk)).view.omitted == 0


async def test_without_a_strategy_nothing_is_cut() -> None:
    desk = Desk(strategy="none", high_tokens=1000, low_tokens=510, window=1200)
    await talk(desk, 8)
    assert len(shown(desk)) == 15
    assert results(desk) == {}


@pytest.mark.parametrize("whose", ["request", "session", "tenant"])
async def test_a_narrower_wish_goes_before_a_wider_one(whose: str) -> None:
    desk = Desk(strategy="none")
    caller, overrides = ACME, ContextOverrides()
    small = ContextOverrides(strategy="window", high_tokens=500, low_tokens=300)
    if whose == "tenant":
        rules = msgspec.structs.replace(
            ACME.rules, context_strategy="window", context_high_tokens=500, context_low_tokens=300
        )
        caller = make_caller(rules, b"a secret of the tests")
    for number in range(4):
        if whose == "session" and number == 1:
            history, _ = await desk.histories.load(SID, ACME.rules.tenant)
            assert await desk.histories.commit_view(history, msgspec.structs.replace(history.view, overrides=small))
        await desk.take(user(f"{number} {LONG}"), caller=caller, context=small if whose == "request" else overrides)
        await clean(desk)
    assert results(desk).get("cut")


async def test_summaries_cover_what_was_cut() -> None:
    writer = FakeWriter(["they spoke of x", "and of more x"])
    desk = summary_desk(writer)
    await talk(desk, 6)
    assert results(desk) == {"summarized": 1}
    assert [item.number for item in writer.sources[0].items] == [1, 2, 3, 4, 5, 6]
    await desk.take(user("next"))
    assert "they spoke of x" in shown(desk)[0]
    assert "left out" not in shown(desk)[0]
    await talk(desk, 4)
    assert writer.sources[1].items[0].number == 7, "nothing is told of twice"
    await desk.take(user("next"))
    first, second = shown(desk)[0].index("they spoke of x"), shown(desk)[0].index("and of more x")
    assert first < second, "notes are frozen: new ones come behind them"


async def test_summaries_of_many_summaries_take_their_place() -> None:
    writer = FakeWriter([f"notes {number}" for number in range(9)])
    desk = summary_desk(writer)
    while not (writer.sources and writer.sources[-1].summaries):
        await talk(desk, 1)
    assert [segment.text for segment in writer.sources[-1].summaries] == [f"notes {number}" for number in range(8)]
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
async def test_bad_summaries_leave_the_old_view_and_are_tried_again_later(text: str | Exception, result: str) -> None:
    writer = FakeWriter([text, "good notes"])
    desk = summary_desk(writer)
    await talk(desk, 5)
    assert results(desk) == {result: 1}
    assert len((await history_of(desk)).bodies) == 10
    await talk(desk, 1)
    assert len(writer.sources) == 1, "not at once"
    desk.now += 11.0
    await talk(desk, 1)
    assert results(desk)["summarized"] == 1


async def test_summaries_that_fail_again_and_again_are_asked_for_less_and_less_often() -> None:
    writer = FakeWriter([""])
    desk = summary_desk(writer)
    for _ in range(40):
        await talk(desk, 1)
        desk.now += 5.0
    assert 3 <= len(writer.sources) <= 6


def job(desk: Desk) -> CompactionJob:
    (found,) = desk.turns.context_window.compactor.jobs.values()
    return found


async def test_a_client_that_resends_everything_is_recognised_after_a_cut() -> None:
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


async def test_a_budget_that_is_spent_writes_no_more_summaries_that_day() -> None:
    writer = FakeWriter()
    desk = summary_desk(writer)
    rules = msgspec.structs.replace(ACME.rules, summary_tokens_per_day=700)
    caller = make_caller(rules, b"a secret of the tests")
    await talk(desk, 12, caller=caller)
    assert results(desk)["summarized"] == 1
    assert results(desk)["over_budget"] >= 1
    assert 0 < (desk.turns.context_window.compactor.budget.left(rules) or 0) < 100
    desk.now += 86_400.0
    assert desk.turns.context_window.compactor.budget.left(rules) == 700


async def test_what_waits_for_the_compactor_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compactor_module, "MAX_WAITING", 2)
    desk = window_desk()
    compactor = context_window_of(desk.histories, lambda: desk.now).compactor
    for name in "abca":
        compactor.submit(Sid(name * 32), desk.ask(None), ViewPlan(0, 0))
    assert compactor.waiting == 2
    assert compactor.results["dropped"] == 1


async def test_compactors_that_run_take_each_session_once_at_a_time() -> None:
    writer = SlowWriter()
    desk = summary_desk(writer)
    compactor = desk.turns.context_window.compactor
    running = [asyncio.create_task(compactor.run()) for _ in range(3)]
    await pile_up(desk, 8)
    await writer.asked.wait()
    writer.go.set()
    while compactor.waiting or compactor.at_work:
        await asyncio.sleep(0)
    numbers = [item.number for source in writer.sources for item in source.items]
    assert numbers == sorted(set(numbers)), "nothing was told of twice"
    assert compactor.results["raced"] == 0
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_store_that_is_away_fails_a_chore_and_nothing_else() -> None:
    desk = window_desk()
    await pile_up(desk, 6)
    desk.store.fails["before load"] = 1
    await desk.turns.context_window.compactor.do(job(desk))
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


async def test_what_was_recalled_is_neither_indexed_nor_covered_by_summaries() -> None:
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
    assert desk.turns.context_window.recaller.results["unavailable"] == 1


async def test_a_session_that_is_deleted_leaves_nothing_to_be_found() -> None:
    index = WordIndex()
    desk = recall_desk(index)
    desk.histories.on_deleted = desk.turns.context_window.recaller.forget
    await desk.take(user(f"my cat is called Mimi {LONG}"))
    await talk(desk, 5)
    other = Desk(desk.store)
    assert index.kept
    await other.histories.delete(SID, ACME.rules.tenant)  # whose mirror is another
    desk.histories.cache.forget(SID)
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


async def copy_of_a_cut_session(desk: Desk, upto: int | None = None) -> Sid:
    if upto is None:
        await talk(desk, 6)
    copy = Sid("copy")
    assert await copy_session(desk.histories, SID, copy, ACME.rules.tenant, 60.0, upto=upto)
    return copy


async def test_a_copy_of_a_cut_session_sends_what_the_session_would_have() -> None:
    for desk in (window_desk(), summary_desk()):
        copy = await copy_of_a_cut_session(desk)
        await desk.take(user("there"), sid=copy)
        there = shown(desk)
        await desk.take(user("here"))
        assert there[:-1] == shown(desk)[:-1]
        assert len(there) < 13
        assert len(await desk.texts(copy)) == 14, "its log has everything"


async def test_a_copy_of_what_stands_before_the_cut_is_whole() -> None:
    desk = window_desk()
    await talk(desk, 6)
    fourth = (await history_of(desk)).items[3]
    copy = await copy_of_a_cut_session(desk, upto=fourth.number)
    await desk.take(user("there"), sid=copy)
    assert len(shown(desk)) == 5


async def test_summaries_that_are_being_written_of_a_session_are_no_summaries_of_its_copy() -> None:
    desk = summary_desk(FakeWriter([WorkerError("none")]))
    copy = await copy_of_a_cut_session(desk)
    assert (await history_of(desk)).view.work is not None
    assert (await history_of(desk, copy)).view.work is None


async def test_a_replica_that_has_not_indexed_what_left_a_prompt_does_so_after_the_next_turn() -> None:
    index = WordIndex()
    desk = recall_desk(index)
    copy = await copy_of_a_cut_session(desk)
    index.kept.clear()
    for is_indexed in (True, False):
        await desk.take(user("there"), sid=copy)
        await clean(desk)
        assert bool(index.kept) == is_indexed, "once is enough"
        index.kept.clear()


async def test_a_turn_that_leaves_nothing_after_is_cut_to_fit_and_leaves_no_cut_after_either() -> None:
    desk = window_desk(window=900, high_tokens=10_000)
    await pile_up(desk, 4)
    before = (await history_of(desk)).view
    await desk.run_ephemeral(SID, (await history_of(desk)).log.last_turn, user(LONG))
    assert "earlier messages are left out" in shown(desk)[0]
    assert (await history_of(desk)).view == before


async def refused(desk: Desk, *messages: dict[str, Any], **overrides: Any) -> RouterError:
    asked = len(desk.dispatch.asked)
    with pytest.raises(ContextTooLong) as refusal:
        await desk.take(*messages, **overrides)
    assert len(desk.dispatch.asked) == asked, "no worker is asked"
    return refusal.value


async def test_a_prompt_that_is_clearly_too_long_for_its_window_is_refused_and_says_by_how_much() -> None:
    desk = Desk(strategy="none", window=400)
    await pile_up(desk, 2)
    error = await refused(desk, user(LONG * 2))
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert error.message.startswith("the model's context has 400 tokens, and the prompt about 6")
    await desk.take(user("short"))
    assert len(await desk.texts()) == 6, "what was refused is not part of the session"
    await desk.require_quiet()


async def test_a_prompt_about_as_long_as_its_window_is_left_to_the_worker_which_counts_it_truly() -> None:
    desk = Desk(strategy="none", window=400)
    await pile_up(desk, 3)
    assert len(shown(desk)) == 5


async def test_one_message_that_no_cut_makes_fit_is_refused() -> None:
    await refused(window_desk(window=400), user(LONG * 8))


async def test_a_turn_that_leaves_nothing_after_is_refused_likewise() -> None:
    desk = Desk(strategy="none", window=400)
    await pile_up(desk, 1)
    with pytest.raises(ContextTooLong):
        await desk.run_ephemeral(SID, 1, user(LONG * 8))


async def delete(desk: Desk, at: int) -> None:
    """The item there, as a client does."""
    number = (await history_of(desk)).items[at].number
    request = desk.ask(Incoming(model="", messages=(), params={}))
    history, _ = await desk.turns.append(request, [Draft(Kind.DELETION, msgspec.json.encode((number, 0)))])
    await desk.histories.erase(history, number)


async def test_summaries_that_cover_a_deleted_item_are_sent_no_more_and_written_again_without_it() -> None:
    writer = FakeWriter(["a secret", "harmless"])
    desk = summary_desk(writer)
    await talk(desk, 6)
    assert (await history_of(desk)).view.segments[0].text == "a secret"
    await delete(desk, 0)
    assert b"a secret" not in await stored_view(desk)
    await desk.take(user("next"))
    assert shown(desk)[0] == "[5 earlier messages are left out here.]"
    await clean(desk)
    assert "0 " + LONG not in [msgspec.json.decode(item.body)["content"] for item in writer.sources[-1].items]
    assert (await history_of(desk)).view.pending[0].text == "harmless"


async def test_summaries_of_what_was_not_deleted_stay() -> None:
    desk = summary_desk()
    await talk(desk, 6)
    await delete(desk, -1)
    assert len((await history_of(desk)).view.segments) == 1


async def test_summaries_that_were_being_written_when_an_item_was_deleted_are_not_used() -> None:
    writer = FakeWriter()
    desk = summary_desk(writer)
    held = asyncio.Event()
    began = asyncio.Event()

    async def slow(request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:
        began.set()
        await held.wait()
        return Written("of what is deleted", 5, source.tokens)

    writer.write = slow  # type: ignore[method-assign]
    await pile_up(desk, 6)
    cleaning = asyncio.create_task(clean(desk))
    await began.wait()
    await delete(desk, 0)
    held.set()
    await cleaning
    assert results(desk) == {"stale": 1}
    assert not (await history_of(desk)).view.ready


async def test_another_replica_sends_no_summaries_of_a_deleted_item_though_the_view_still_has_them() -> None:
    desk = summary_desk()
    await talk(desk, 6)
    number = (await history_of(desk)).items[0].number
    request = desk.ask(Incoming(model="", messages=(), params={}))
    await desk.turns.append(request, [Draft(Kind.DELETION, msgspec.json.encode((number, 0)))])
    assert b"notes" in await stored_view(desk)
    assert not (await history_of(desk)).view.segments


async def test_a_deleted_item_is_recalled_no_more_nor_sent_where_it_was_recalled() -> None:
    index = WordIndex()
    desk = recall_desk(index)
    await desk.take(user(f"the code is swordfish {LONG}"))
    await talk(desk, 5)
    await desk.take(user("what was swordfish"))
    assert "swordfish" in shown(desk)[-1].removesuffix("what was swordfish")
    await delete(desk, 0)
    await delete(desk, 0)  # the answer, which repeats it
    assert not any("swordfish" in text for texts in index.kept.values() for text in texts.values())
    await desk.take(user("and now"))
    assert shown(desk)[-3] == "what was swordfish", "without what was recalled for it"


async def stored_view(desk: Desk) -> bytes:
    loaded = await desk.store.load(SID, ACME.rules.tenant, EMPTY)
    assert loaded is not None
    return loaded.view or b""


async def test_a_question_is_searched_for_once_though_nothing_is_found() -> None:
    searches = []

    class Nothing(WordIndex):
        async def search(self, sid: Sid, owner: Tenant, query: str, *, upto: int, limit: int) -> Sequence[int]:
            searches.append(query)
            return []

    desk = recall_desk(Nothing(), window=1100)
    await talk(desk, 6)
    searches.clear()
    await desk.take(user(LONG * 5))
    assert desk.turns.context_window.views.cuts == 1, "it could not be guessed"
    assert len(searches) == 1


async def test_summaries_after_a_full_sessions_prompt_are_written_all_the_same() -> None:
    desk = Desk()
    desk.histories.config = SessionsConfig(max_entries=12)
    await pile_up(desk, 6)
    history = (await desk.histories.load(SID, ACME.rules.tenant))[0]
    writer = FleetSummaryWriter(desk.planner, desk.dispatch, desk.clock, "", lambda _model: 0)
    request = desk.ask(read_chat(json.dumps({"model": "m", "messages": [user("next")]}).encode(), ACME, LIMITS))
    source = source_of(history, history.items[5].place)
    written = await writer.write(request, history, source, 50)
    assert written.text.startswith("to ")
    with pytest.raises(SessionFull):
        await desk.take(user("more"))


async def test_summaries_on_what_the_prompt_has_no_more_are_made_of_a_transcript() -> None:
    desk = Desk(window=900, strategy="summary", high_tokens=10_000)
    await pile_up(desk, 6)
    history = await history_of(desk)
    assert history.view.cut > history.view.summarized_upto, "cut in a turn, and not told of"
    writer = FleetSummaryWriter(desk.planner, desk.dispatch, desk.clock, "", lambda _model: 0)
    await writer.write(desk.ask(asked("next")), history, source_of(history, history.view.cut), 50)
    sent = desk.dispatch.sent()
    assert sent[0]["role"] == "system"
    assert "user said: 0 x" in str(sent[1]["content"])


async def test_summaries_are_not_asked_for_after_a_call_that_is_open() -> None:
    desk = Desk(strategy="none")
    await pile_up(desk, 2)
    history = await history_of(desk)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = msgspec.json.encode({"role": "assistant", "content": None, "tool_calls": [call]})
    history.items[-1] = history.items[-1]._replace(body=body)
    writer = FleetSummaryWriter(desk.planner, desk.dispatch, desk.clock, "", lambda _model: 0)
    await writer.write(desk.ask(asked("next")), history, source_of(history, history.items[1].place), 50)
    assert desk.dispatch.sent()[0]["role"] == "system", "a transcript"


def asked(text: str) -> Incoming:
    return read_chat(json.dumps({"model": "m", "messages": [user(text)]}).encode(), ACME, LIMITS)


async def test_summaries_count_against_no_limit_of_their_tenant() -> None:
    told = []

    class Asked(FakeDispatch):
        async def dispatch(self, request: Request, client: Client, started_at: float, rules: TenantRules) -> None:
            told.append(rules)
            await super().dispatch(request, client, started_at, rules)

    desk = Desk(strategy="none")
    await pile_up(desk, 2)
    history = await history_of(desk)
    writer = FleetSummaryWriter(desk.planner, Asked(desk.points), desk.clock, "", lambda _model: 0)
    await writer.write(desk.ask(asked("next")), history, source_of(history, history.items[1].place), 50)
    assert told == [LOW_PRIORITY]


async def test_what_is_too_long_for_one_request_is_cut_at_once_and_told_of_part_by_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compactor_module, "MAX_SOURCE_TOKENS", 450)
    writer = FakeWriter(["one", "two", "three"])
    desk = summary_desk(writer)
    await talk(desk, 6)
    assert all(source.tokens <= 450 for source in writer.sources)
    assert results(desk)["pending"] == len(writer.sources), "what was cut already"
    for _ in range(3):
        await desk.take(user("next"))
        await clean(desk)
    history = await history_of(desk)
    assert history.view.summarized_upto == history.view.cut
    numbers = [item.number for source in writer.sources for item in source.items]
    assert numbers == [item.number for item in history.items[: history.start]], "each once"


async def test_summaries_that_take_more_than_their_share_are_made_into_one() -> None:
    writer = FakeWriter(["n" * 70])
    desk = summary_desk(writer, low_tokens=120, high_tokens=600)
    await talk(desk, 16)
    assert any(source.summaries for source in writer.sources), "notes of notes"
    assert len((await history_of(desk)).view.ready) <= 3


async def test_a_history_that_takes_no_summaries_does_not_wait_for_those_that_do() -> None:
    writer = SlowWriter()
    desk = summary_desk(writer, strategy="hybrid")
    await pile_up(desk, 6)
    compactor = desk.turns.context_window.compactor
    runs = [asyncio.create_task(compactor.run()), asyncio.create_task(compactor.run(writes=False))]
    await writer.asked.wait()
    other = Sid("other")
    for number in range(6):
        await desk.take(user(f"{number} {LONG}"), sid=other, context=ContextOverrides(strategy="window"))
    while not results(desk):
        await asyncio.sleep(0)
    assert results(desk) == {"cut": 1}
    writer.go.set()
    while len(results(desk)) < 2:
        await asyncio.sleep(0)
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)


async def test_a_view_that_cannot_be_read_is_as_none() -> None:
    desk = window_desk()
    await talk(desk, 6)
    await damage_view(desk, b"[]")
    fresh = window_desk(store=desk.store)
    await fresh.take(user("and"))
    assert len(shown(fresh)) == 13


async def damage_view(desk: Desk, view: bytes) -> None:
    history = await history_of(desk)
    assert await desk.store.commit_view(SID, ACME.rules.tenant, history.generation, history.epoch, view)


async def test_an_image_is_not_counted_by_its_bytes() -> None:
    desk = window_desk(window=900, high_tokens=10_000)
    image = {"type": "image_url", "image_url": {"url": "data:," + "x" * 40_000}}
    await desk.take({"role": "user", "content": [{"type": "text", "text": "see"}, image]})
    assert (await history_of(desk)).items[0].tokens < 100


async def test_thoughts_are_not_counted_since_no_prompt_has_them() -> None:
    desk = Desk(strategy="none")

    async def think(request: Request, client: Client, record: Record) -> None:
        message = {"role": "assistant", "content": "yes", "reasoning_content": "hm " * 1000}
        body = {"id": "c", "created": 1, "model": "m", "choices": [{"index": 0, "message": message}]}
        usage = {"prompt_tokens": 5, "completion_tokens": 1002}
        await client.answer(Reply(200, {}, msgspec.json.encode(body | {"usage": usage}), is_stream=False), record)

    desk.dispatch.scripts.append(think)
    await desk.take(user("so?"), stream=False)
    assert (await history_of(desk)).items[1].tokens < 20
