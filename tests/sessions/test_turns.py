"""A turn: stored before a worker is asked, saved before its client hears the end, and gone without a trace when it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from router.core.errors import (
    InvalidRequest,
    ModelNotFound,
    NoWorkerAvailable,
    RouterError,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    StateUnavailable,
    WorkerError,
)
from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.request import Request, Tenant
from router.core.tenants.tenant import TenantRules, make_caller
from router.proxy.ports import Client
from router.sessions.context.prompt import Incoming
from router.sessions.copying import COPIED_BYTES, TurnPosition, copy_session, history_as_of
from router.sessions.histories import ENTRIES_AT_ONCE
from router.sessions.session_ids import affinity_key
from router.sessions.stores.contract import EMPTY, MAX_TAIL_BYTES, Append, Sid
from tests.sessions.context.logs import message
from tests.sessions.desk import ACME, DONE, SID, Desk, FakeClient, contents, delta, outcomes, said, user, write

BOTH = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
OTHER_SID = Sid("b" * 32)


async def step() -> None:
    """Let everybody else come as far as they can."""
    for _ in range(30):
        await asyncio.sleep(0)


def as_answer(request: Request, text: str = "yes") -> Reply:
    choice = {"index": 0, "message": said(text), "finish_reason": "stop"}
    return Reply(200, {}, json.dumps({"id": "c", "choices": [choice]}).encode(), is_stream=False)


async def refuse(request: Request, client: Client, record: Record) -> None:
    await client.answer(Reply(400, {}, b'{"error":{"message":"too long"}}', is_stream=False), record)


async def find_nobody(request: Request, client: Client, record: Record) -> None:
    raise NoWorkerAvailable("no worker is up", retry_after_s=1)


async def break_off(request: Request, client: Client, record: Record) -> None:
    write(client, client.stream_head(Reply(200, {}, b"", is_stream=True), record) + delta("half "))
    client.break_off(WorkerError("the worker failed while it answered"))


async def stop_without_reason(request: Request, client: Client, record: Record) -> None:
    write(client, client.stream_head(Reply(200, {}, b"", is_stream=True), record) + delta("half ") + DONE)


async def babble(request: Request, client: Client, record: Record) -> None:
    if request.stream:
        write(client, client.stream_head(Reply(200, {}, b"", is_stream=True), record) + b"data: {]\n\n" + DONE)
    else:
        await client.answer(Reply(200, {}, b"<html>", is_stream=False), record)


# The order


@BOTH
async def test_a_turn_is_stored_then_asked_then_saved_then_ended(stream: bool) -> None:
    desk = Desk()
    client = await desk.take(user("hi"), stream=stream)
    assert client.text == "to hi"
    places = [name for name in desk.points.passed if name != "amid dispatch"]
    end = "client is at the end" if stream else "client is answered"
    assert places == [
        "before begin",
        "behind begin",
        "before dispatch",
        "behind dispatch",
        "before end",
        "behind end",
        end,
    ]
    assert await desk.texts() == ["hi", "to hi"]
    await desk.require_quiet()


@BOTH
async def test_the_next_turn_sends_all_of_those_before_it(stream: bool) -> None:
    desk = Desk()
    for text in ("one", "two", "three"):
        await desk.take(user(text), stream=stream)
    assert desk.dispatch.sent() == [user("one"), said("to one"), user("two"), said("to two"), user("three")]
    assert desk.dispatch.asked[-1].session == affinity_key(SID)
    assert desk.workers == ["w-1", "w-1"]
    assert outcomes(desk)["ok"] == 3


async def test_a_stream_is_at_its_end_for_the_client_only_once_it_is_saved() -> None:
    desk = Desk()
    let_go = desk.points.held["behind end"] = asyncio.Event()
    client = FakeClient(desk.points)
    turn = desk.begin(user("hi"), client=client)
    await desk.points.reached.wait()
    await step()
    assert client.text == "to hi"
    assert b'finish_reason":"stop' not in client.told
    assert b"[DONE]" not in client.told
    assert not client.has_ended
    let_go.set()
    await turn
    assert client.told.endswith(delta(reason="stop") + DONE)
    assert client.has_ended


async def test_a_whole_answer_is_given_only_once_it_is_saved() -> None:
    desk = Desk()
    let_go = desk.points.held["behind end"] = asyncio.Event()
    client = FakeClient(desk.points)
    turn = desk.begin(user("hi"), client=client, stream=False)
    await desk.points.reached.wait()
    await step()
    assert client.reply is None
    let_go.set()
    await turn
    assert client.text == "to hi"


async def test_text_flows_while_the_worker_speaks() -> None:
    desk = Desk()
    let_go = desk.points.held["amid dispatch"] = asyncio.Event()
    client = FakeClient(desk.points)
    turn = desk.begin(user("hi"), client=client)
    await client.begun.wait()
    assert client.text == "to "
    assert client.told.startswith(b"HEAD")
    let_go.set()
    await turn


# Failures


async def test_a_stream_that_could_not_be_saved_has_no_clean_end() -> None:
    desk = Desk()
    desk.store.fails["before end"] = 1
    client = await desk.take(user("hi"))
    assert isinstance(client.broken, StateUnavailable)
    assert not client.has_ended
    assert b"[DONE]" not in client.told
    assert outcomes(desk) == {"failed": 1}
    await desk.settled()
    assert await desk.texts() == []
    await desk.require_quiet()


async def test_a_whole_answer_that_could_not_be_saved_is_not_given() -> None:
    desk = Desk()
    desk.store.fails["before end"] = 1
    client = FakeClient(desk.points)
    with pytest.raises(StateUnavailable) as unavailable:
        await desk.take(user("hi"), client=client, stream=False)
    assert (unavailable.value.status, client.reply) == (503, None)
    await desk.require_quiet()


@pytest.mark.parametrize("place", ["before begin", "behind begin"])
async def test_a_store_that_does_not_answer_is_not_a_session_without_a_history(place: str) -> None:
    desk = Desk()
    await desk.take(user("one"))
    desk.store.fails[place] = 1
    with pytest.raises(StateUnavailable):
        await desk.take(user("lost"))
    assert len(desk.dispatch.asked) == 1
    await desk.require_quiet()
    await desk.take(user("two"))
    assert await desk.texts() == ["one", "to one", "two", "to two"]


async def test_an_end_that_was_written_unheard_of_is_read_by_the_next_turn() -> None:
    desk = Desk()
    desk.store.fails["behind end"] = 1
    client = await desk.take(user("one"))
    assert isinstance(client.broken, StateUnavailable)
    await desk.take(user("two"))
    assert desk.dispatch.sent() == [user("one"), said("to one"), user("two")]
    assert await desk.texts() == ["one", "to one", "two", "to two"]


@BOTH
async def test_a_workers_refusal_reaches_the_client_and_leaves_no_item(stream: bool) -> None:
    desk = Desk()
    desk.dispatch.scripts = [refuse]
    client = await desk.take(user("hi"), stream=stream)
    assert client.reply is not None
    assert (client.reply.status, client.reply.body) == (400, b'{"error":{"message":"too long"}}')
    await desk.take(user("again"))
    assert desk.dispatch.sent() == [user("again")]
    assert await desk.texts() == ["again", "to again"]
    assert outcomes(desk) == {"ok": 1, "refused": 1}
    await desk.require_quiet()


@BOTH
async def test_a_turn_without_a_worker_leaves_no_item(stream: bool) -> None:
    desk = Desk()
    desk.dispatch.scripts = [find_nobody]
    with pytest.raises(NoWorkerAvailable):
        await desk.take(user("hi"), stream=stream)
    await desk.require_quiet()
    assert await desk.texts() == []


@pytest.mark.parametrize("script", [break_off, stop_without_reason])
async def test_half_an_answer_is_not_kept(script: Any) -> None:
    desk = Desk()
    desk.dispatch.scripts = [script]
    client = await desk.take(user("hi"))
    assert isinstance(client.broken, WorkerError)
    assert not client.has_ended
    assert b"[DONE]" not in client.told
    assert await desk.texts() == []
    await desk.require_quiet()


async def test_a_streams_answer_that_nobody_understands_is_not_kept() -> None:
    desk = Desk()
    desk.dispatch.scripts = [babble]
    client = await desk.take(user("hi"))
    assert isinstance(client.broken, WorkerError)
    assert await desk.texts() == []


async def call_nothing(request: Request, client: Client, record: Record) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": "f"}]}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode()
    await client.answer(Reply(200, {}, body, is_stream=False), record)


async def test_a_call_that_is_none_is_not_kept() -> None:
    desk = Desk()
    desk.dispatch.scripts = [call_nothing]
    with pytest.raises(WorkerError):
        await desk.take(user("one"), stream=False)
    assert await desk.texts() == []


async def test_a_whole_answer_that_nobody_understands_is_not_given() -> None:
    desk = Desk()
    desk.dispatch.scripts = [babble]
    with pytest.raises(WorkerError):
        await desk.take(user("hi"), stream=False)
    assert await desk.texts() == []


async def test_a_client_that_is_gone_is_written_nothing_and_its_whole_answer_is_kept() -> None:
    desk = Desk()
    let_go = desk.points.held["amid dispatch"] = asyncio.Event()
    client = FakeClient(desk.points)
    turn = desk.begin(user("hi"), client=client)
    await client.begun.wait()

    async def go_on(request: Request, held: Client, record: Record) -> None:
        held.end_stream(delta("all") + delta(reason="stop") + DONE)  # as a resumption does, whose client left meanwhile

    client.is_gone = True
    let_go.set()
    await turn
    assert await desk.texts() == []
    gone = FakeClient(desk.points)
    gone.is_gone = True
    desk.dispatch.scripts = [go_on]
    await desk.take(user("hi"), client=gone)
    assert await desk.texts() == ["hi", "all"]


async def test_a_session_that_cannot_be_read_says_so_and_others_go_on() -> None:
    desk = Desk()
    await desk.take(user("hi"))
    await desk.take(user("hi"), sid=OTHER_SID)
    desk.store._sessions[SID].entries[0] = b"[9]"
    desk.histories.cache.forget(SID)
    for _ in range(2):
        with pytest.raises(SessionCorrupt):
            await desk.take(user("more"))
    await desk.require_quiet()
    await desk.take(user("more"), sid=OTHER_SID)
    assert await desk.store.delete(SID, ACME.rules.tenant)
    await desk.take(user("anew"))
    assert await desk.texts() == ["anew", "to anew"]


# Cancellation


async def places_of_a_turn(prepare: Callable[[Desk], Any], **overrides: Any) -> list[str]:
    desk = Desk()
    await prepare(desk)
    desk.points.passed.clear()
    await desk.take(user("cut"), **overrides)
    await desk.settled()
    return [place for place in desk.points.passed if not place.startswith("client")]


async def nothing_before(_desk: Desk) -> None: ...


async def a_turn_before(desk: Desk) -> None:
    await desk.take(user("one"))


async def a_turn_elsewhere_before(desk: Desk) -> None:
    await desk.take(user("one"))
    await Desk(desk.store).take(user("two"))


@pytest.mark.parametrize("prepare", [nothing_before, a_turn_before, a_turn_elsewhere_before])
@BOTH
async def test_a_turn_cancelled_anywhere_leaves_nothing_held(prepare: Callable[[Desk], Any], stream: bool) -> None:
    places = await places_of_a_turn(prepare, stream=stream)
    assert len(places) >= 6
    for number, place in enumerate(places):
        desk = Desk()
        await prepare(desk)
        before = await desk.texts() if prepare is not nothing_before else []
        tasks = asyncio.all_tasks()
        desk.points.passed.clear()
        desk.points.reached.clear()
        desk.points.stopped_at = number
        turn = desk.begin(user("cut"), stream=stream)
        await desk.points.reached.wait()
        desk.points.stopped_at = -1
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        await desk.require_quiet()
        assert asyncio.all_tasks() == tasks, place
        client = await desk.take(user("next"), stream=stream)
        assert client.text == "to next"
        cut = ["cut", "to cut"] if place == "behind end" else []
        assert await desk.texts() == [*before, *cut, "next", "to next"], place
        assert [each["content"] for each in desk.dispatch.sent()] == [*before, *cut, "next"], place


async def test_an_answer_is_not_kept_by_anybody_once_its_turn_was_cancelled_twice() -> None:
    desk = Desk()
    desk.points.held["before end"] = asyncio.Event()
    others = asyncio.all_tasks()
    turn = desk.begin(user("hi"))
    await desk.points.reached.wait()
    for _ in range(2):
        turn.cancel()
        await step()
    assert turn.cancelled()
    await desk.settled()
    assert asyncio.all_tasks() == others
    assert await desk.texts() == []
    await desk.require_quiet()


async def test_a_cancelled_wait_gives_its_place_in_line_up() -> None:
    desk = Desk()
    let_go = desk.points.held["before dispatch"] = asyncio.Event()
    first = desk.begin(user("one"))
    await desk.points.reached.wait()
    second = desk.begin(user("two"))
    await step()
    third = desk.begin(user("three"))
    await step()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    let_go.set()
    await asyncio.gather(first, third)
    assert await desk.texts() == ["one", "to one", "three", "to three"]
    await desk.require_quiet()


# Two at once


@BOTH
async def test_turns_of_one_session_follow_each_other_in_the_order_in_which_they_came(stream: bool) -> None:
    desk = Desk()
    let_go = desk.points.held["before dispatch"] = asyncio.Event()
    turns = []
    for number in range(8):
        turns.append(desk.begin(user(f"{number}"), stream=stream))
        await step()
    assert len(desk.dispatch.asked) == 1
    let_go.set()
    await asyncio.gather(*turns)
    wanted = [text for number in range(8) for text in (f"{number}", f"to {number}")]
    assert await desk.texts() == wanted
    assert [each["content"] for each in desk.dispatch.sent()] == wanted[:-1]
    assert desk.turns.counts.conflicts == {"queue": 7, "reject": 0, "fork": 0}
    await desk.require_quiet()


async def test_turns_of_two_replicas_lose_and_repeat_nothing() -> None:
    one = Desk()
    other = Desk(one.store)
    turns = [(one if number % 2 else other).begin(user(f"{number}")) for number in range(12)]
    await asyncio.gather(*turns)
    found = await one.texts()
    assert sorted(found[::2]) == sorted(f"{number}" for number in range(12))
    assert found[1::2] == [f"to {text}" for text in found[::2]]
    for desk in (one, other):
        await desk.require_quiet()
        sent = max(desk.dispatch.asked, key=lambda request: len(request.body))
        asked = [each["content"] for each in json.loads(sent.body)["messages"]]
        assert asked == found[: len(asked)]


async def test_turns_of_two_sessions_do_not_wait_for_each_other() -> None:
    desk = Desk()
    let_go = desk.points.held["behind dispatch"] = asyncio.Event()
    first = desk.begin(user("one"))
    await desk.points.reached.wait()
    second = desk.begin(user("two"), sid=OTHER_SID)
    await step()
    assert len(desk.dispatch.asked) == 2
    let_go.set()
    await asyncio.gather(first, second)
    assert await desk.texts() == ["one", "to one"]
    assert await desk.texts(OTHER_SID) == ["two", "to two"]


async def test_a_busy_session_refuses_whoever_would_not_wait() -> None:
    desk = Desk()
    let_go = desk.points.held["before dispatch"] = asyncio.Event()
    first = desk.begin(user("one"))
    await desk.points.reached.wait()
    with pytest.raises(SessionBusy) as busy:
        await desk.take(user("two"), on_busy="reject")
    assert (busy.value.status, busy.value.code, busy.value.retry_after_s) == (409, "session_busy", 1)
    let_go.set()
    await first
    assert await desk.texts() == ["one", "to one"]
    assert desk.turns.counts.conflicts["reject"] == 1
    await desk.require_quiet()


async def test_a_line_is_bounded() -> None:
    desk = Desk(max_waiting=1)
    let_go = desk.points.held["before dispatch"] = asyncio.Event()
    first = desk.begin(user("one"))
    await desk.points.reached.wait()
    second = desk.begin(user("two"))
    await step()
    with pytest.raises(SessionBusy):
        await desk.take(user("three"))
    let_go.set()
    await asyncio.gather(first, second)
    assert await desk.texts() == ["one", "to one", "two", "to two"]


async def test_a_wait_is_bounded() -> None:
    desk = Desk(max_wait_s=5.0)
    let_go = desk.points.held["before dispatch"] = asyncio.Event()
    first = desk.begin(user("one"))
    await desk.points.reached.wait()
    second = desk.begin(user("two"))
    await step()
    desk.now += 6.0
    with pytest.raises(SessionBusy):
        await second
    let_go.set()
    await first
    await desk.require_quiet()


async def test_a_busy_session_is_copied_for_whoever_wants_a_fork() -> None:
    desk = Desk()
    await desk.take(user("one"))
    let_go = desk.points.held["before dispatch"] = asyncio.Event()
    desk.points.reached.clear()
    first = desk.begin(user("two"))
    await desk.points.reached.wait()
    second = desk.begin(user("aside"), on_busy="fork", forks=OTHER_SID)
    await step()
    let_go.set()
    await asyncio.gather(first, second)
    assert await desk.texts() == ["one", "to one", "two", "to two"]
    assert await desk.texts(OTHER_SID) == ["one", "to one", "aside", "to aside"]
    assert desk.turns.counts.conflicts["fork"] == 1
    await desk.require_quiet()
    await desk.require_quiet(OTHER_SID)


async def test_a_session_that_is_free_is_not_copied() -> None:
    desk = Desk()
    await desk.take(user("one"), on_busy="fork", forks=OTHER_SID)
    with pytest.raises(SessionNotFound):
        await desk.texts(OTHER_SID)


async def test_a_claim_whose_replica_died_is_anothers_after_its_lease() -> None:
    dead = Desk()
    alive = Desk(dead.store)
    dead.points.stopped_at = 2
    turn = dead.begin(user("lost"))
    await dead.points.reached.wait()
    waiting = alive.begin(user("next"))
    await step()
    assert not alive.dispatch.asked
    dead.now += 16.0
    assert (await waiting).text == "to next"
    assert await alive.texts() == ["next", "to next"]
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    await dead.settled()


@BOTH
async def test_a_turn_that_lost_its_claim_writes_nothing_more(stream: bool) -> None:
    slow = Desk()
    quick = Desk(slow.store)
    let_go = slow.points.held["behind dispatch"] = asyncio.Event()
    client = FakeClient(slow.points)
    turn = slow.begin(user("slow"), client=client, stream=stream)
    await slow.points.reached.wait()
    slow.now += 16.0
    del slow.points.held["behind dispatch"]
    await quick.take(user("quick"))
    let_go.set()
    if stream:
        await turn
        assert isinstance(client.broken, SessionBusy)
        assert not client.has_ended
    else:
        with pytest.raises(SessionBusy):
            await turn
        assert client.reply is None
    assert slow.turns.counts.fence_rejections == 1
    assert await quick.texts() == ["quick", "to quick"]
    await slow.require_quiet()


async def test_a_turn_that_takes_long_keeps_its_claim() -> None:
    desk = Desk()
    await desk.take(user("one"))
    desk.points.held["behind dispatch"] = let_go = asyncio.Event()
    desk.points.reached.clear()
    turn = desk.begin(user("slow"))
    await desk.points.reached.wait()
    for _ in range(10):
        desk.now += 6.0
        desk.turns.claims.renew()
        await desk.settled()
    loaded = await desk.store.load(SID, ACME.rules.tenant, EMPTY)
    assert loaded is not None
    assert loaded.is_claimed
    let_go.set()
    assert (await turn).has_ended


@BOTH
async def test_a_session_that_is_deleted_under_its_turn_stays_deleted(stream: bool) -> None:
    desk = Desk()
    await desk.take(user("one"))
    let_go = desk.points.held["behind dispatch"] = asyncio.Event()
    desk.points.reached.clear()
    client = FakeClient(desk.points)
    turn = desk.begin(user("two"), client=client, stream=stream)
    await desk.points.reached.wait()
    assert await desk.store.delete(SID, ACME.rules.tenant)
    let_go.set()
    if stream:
        await turn
        assert isinstance(client.broken, SessionBusy)
    else:
        with pytest.raises(SessionBusy):
            await turn
    with pytest.raises(SessionNotFound):
        await desk.texts()
    await desk.take(user("anew"))
    assert desk.dispatch.sent() == [user("anew")]
    assert await desk.texts() == ["anew", "to anew"]


async def test_a_turn_begun_in_a_deleted_session_does_not_end_in_the_one_that_took_its_name() -> None:
    desk = Desk()
    let_go = desk.points.held["behind dispatch"] = asyncio.Event()
    turn = desk.begin(user("old"))
    await desk.points.reached.wait()
    assert await desk.store.delete(SID, ACME.rules.tenant)
    del desk.points.held["behind dispatch"]
    await Desk(desk.store).take(user("new"))
    let_go.set()
    assert isinstance((await turn).broken, SessionBusy)
    assert await desk.texts() == ["new", "to new"]


# Repetitions


@BOTH
async def test_a_request_that_is_repeated_is_answered_again_without_a_worker(stream: bool) -> None:
    desk = Desk()
    first = await desk.take(user("hi"), key="k-1", stream=stream)
    await desk.take(user("meanwhile"))
    again = await desk.take(user("hi"), key="k-1", stream=stream)
    assert again.text == first.text == "to hi"
    assert again.has_ended == stream
    assert len(desk.dispatch.asked) == 2
    assert await desk.texts() == ["hi", "to hi", "meanwhile", "to meanwhile"]
    assert outcomes(desk)["repeated"] == 1


async def test_a_repetition_of_what_is_under_way_waits_for_its_answer() -> None:
    desk = Desk()
    let_go = desk.points.held["behind dispatch"] = asyncio.Event()
    first = desk.begin(user("hi"), key="k-1")
    await desk.points.reached.wait()
    again = desk.begin(user("hi"), key="k-1")
    await step()
    let_go.set()
    assert [client.text for client in await asyncio.gather(first, again)] == ["to hi", "to hi"]
    assert len(desk.dispatch.asked) == 1


async def test_a_key_that_was_used_for_another_request_is_refused() -> None:
    desk = Desk()
    await desk.take(user("hi"), key="k-1")
    with pytest.raises(InvalidRequest) as refused:
        await desk.take(user("ho"), key="k-1")
    assert (refused.value.status, refused.value.param) == (400, "Idempotency-Key")
    assert await desk.texts() == ["hi", "to hi"]


async def test_a_request_that_failed_is_tried_again_under_its_key() -> None:
    desk = Desk()
    desk.dispatch.scripts = [find_nobody]
    with pytest.raises(NoWorkerAvailable):
        await desk.take(user("hi"), key="k-1")
    await desk.settled()
    assert (await desk.take(user("hi"), key="k-1")).text == "to hi"
    assert (await desk.take(user("hi"), key="k-1")).text == "to hi"
    assert len(desk.dispatch.asked) == 2
    assert await desk.texts() == ["hi", "to hi"]


async def test_keys_of_two_sessions_and_two_tenants_do_not_meet() -> None:
    desk = Desk()
    await desk.take(user("hi"), key="k-1")
    await desk.take(user("ho"), key="k-1", sid=OTHER_SID)
    assert await desk.texts(OTHER_SID) == ["ho", "to ho"]
    beta = make_caller(TenantRules(tenant=Tenant("beta")), b"a secret of the tests")
    with pytest.raises(SessionNotFound):
        await desk.take(user("hi"), key="k-1", caller=beta)


# What clients send again, and change


async def test_a_client_that_sends_everything_again_adds_what_is_new() -> None:
    desk = Desk()
    await desk.take(user("one"))
    await desk.take(user("one"), said("to one"), user("two"))
    assert await desk.texts() == ["one", "to one", "two", "to two"]
    assert desk.turns.counts.resent_messages == 2


async def test_a_history_that_is_not_this_one_is_refused_and_holds_nothing() -> None:
    desk = Desk()
    await desk.take(user("one"))
    for _ in range(2):
        with pytest.raises(InvalidRequest) as refused:
            await desk.take(user("one"), said("edited"), user("two"))
        assert refused.value.param == "messages"
    await desk.require_quiet()
    assert await desk.texts() == ["one", "to one"]


async def test_a_changed_system_message_and_changed_tools_are_counted() -> None:
    desk = Desk()
    tools = [{"type": "function", "function": {"name": "f"}}]
    await desk.take({"role": "system", "content": "a"}, user("one"), tools=tools)
    await desk.take(user("two"))
    assert desk.turns.counts.breaks == {"system_changed": 0, "tools_changed": 0}
    await desk.take({"role": "system", "content": "b"}, user("three"), tools=[])
    assert desk.turns.counts.breaks == {"system_changed": 1, "tools_changed": 1}
    assert desk.dispatch.sent()[0] == {"role": "system", "content": "b"}
    assert json.loads(desk.dispatch.asked[1].body)["tools"] == tools
    assert "tools" not in json.loads(desk.dispatch.asked[2].body)


async def test_what_clients_did_not_have_to_send_is_counted() -> None:
    desk = Desk()
    await desk.take(user("one " * 100))
    assert (first := desk.turns.counts.spared_bytes) < 200
    await desk.take(user("two"))
    assert (second := desk.turns.counts.spared_bytes) - first > 800
    await desk.take(user("one " * 100), said("to " + "one " * 100), user("two"), said("to two"), user("three"))
    assert desk.turns.counts.spared_bytes - second < 200


async def test_the_answer_weighs_what_the_worker_counted() -> None:
    desk = Desk()

    async def count(request: Request, client: Client, record: Record) -> None:
        choice = {"index": 0, "message": said("yes " * 60), "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 77}}).encode()
        await client.answer(Reply(200, {}, body, is_stream=False), record)

    desk.dispatch.scripts = [count]
    await desk.take(user("hi"), stream=False)
    history, _ = await desk.histories.load(SID, ACME.rules.tenant)
    assert [item.tokens for item in history.items] == [8, 77]


# What this replica has in memory


async def test_a_turn_after_ones_own_asks_the_store_twice() -> None:
    desk = Desk()
    await desk.take(user("one"))
    desk.points.passed.clear()
    await desk.take(user("two"))
    assert [place for place in desk.points.passed if place.startswith("before")] == [
        "before begin",
        "before dispatch",
        "before end",
    ]


async def test_what_another_replica_wrote_is_read_before_anything_is_sent() -> None:
    one = Desk()
    other = Desk(one.store)
    await one.take(user("1"))
    await other.take(user("2"))
    await other.take(user("3"))
    await one.take(user("4"))
    assert [each["content"] for each in one.dispatch.sent()] == ["1", "to 1", "2", "to 2", "3", "to 3", "4"]
    assert await one.texts() == ["1", "to 1", "2", "to 2", "3", "to 3", "4", "to 4"]


@pytest.mark.parametrize("place", ["before begin", "behind begin", "before dispatch", "before end", "behind end"])
async def test_a_history_pushed_out_of_memory_amid_a_turn_is_read_again(place: str) -> None:
    desk = Desk()
    await desk.take(user("one"))
    let_go = desk.points.held[place] = asyncio.Event()
    desk.points.reached.clear()
    turn = desk.begin(user("two"))
    await desk.points.reached.wait()
    desk.histories.cache.forget(SID)
    let_go.set()
    assert (await turn).has_ended
    await desk.take(user("three"))
    assert [each["content"] for each in desk.dispatch.sent()] == ["one", "to one", "two", "to two", "three"]
    assert await desk.texts() == ["one", "to one", "two", "to two", "three", "to three"]


@pytest.mark.parametrize("place", ["behind begin", "before dispatch", "before end", "behind end"])
async def test_a_history_that_is_read_amid_a_turn_has_every_entry_once(place: str) -> None:
    desk = Desk()
    await desk.take(user("one"))
    let_go = desk.points.held[place] = asyncio.Event()
    desk.points.reached.clear()
    turn = desk.begin(user("two"))
    await desk.points.reached.wait()
    history, _ = await desk.histories.load(SID, ACME.rules.tenant)
    assert contents(history)[:2] == ["one", "to one"]
    let_go.set()
    assert (await turn).has_ended
    read, _ = await desk.histories.load(SID, ACME.rules.tenant)
    assert contents(read) == await desk.texts() == ["one", "to one", "two", "to two"]


async def test_a_turn_whose_session_was_replaced_while_it_began_touches_neither() -> None:
    desk = Desk()
    await desk.take(user("old"))
    let_go = desk.points.held["behind begin"] = asyncio.Event()
    desk.points.reached.clear()
    turn = desk.begin(user("lost"))
    await desk.points.reached.wait()
    desk.histories.cache.forget(SID)
    del desk.points.held["behind begin"]
    assert await desk.store.delete(SID, ACME.rules.tenant)
    await Desk(desk.store).take(user("new"))
    let_go.set()
    with pytest.raises(SessionBusy):
        await turn
    await desk.take(user("more"))
    assert [each["content"] for each in desk.dispatch.sent()] == ["new", "to new", "more"]


async def test_a_long_log_is_read_while_others_are_served() -> None:
    one = Desk()
    await add(one, *(user(f"{number}") for number in range(2000)))
    other = Desk(one.store)
    loads = [asyncio.create_task(other.histories.load(SID, ACME.rules.tenant)) for _ in range(3)]
    turn = other.begin(user("now"))
    looks = 0
    while not all(load.done() for load in loads):
        await asyncio.sleep(0)
        looks += 1
    assert looks >= 2000 / ENTRIES_AT_ONCE
    assert (await turn).text == "to now"
    for history in (*[load.result()[0] for load in loads], (await other.histories.load(SID, ACME.rules.tenant))[0]):
        assert contents(history)[:2000] == [f"{number}" for number in range(2000)]
    assert (await other.texts())[2000:] == ["now", "to now"]
    assert [each["content"] for each in other.dispatch.sent()][2000:] == ["now"]


async def test_a_history_that_the_store_tells_in_parts_is_read_whole() -> None:
    one = Desk()
    texts = [f"{number} " + "x" * (MAX_TAIL_BYTES // 2) for number in range(5)]
    for text in texts:
        await add(one, user(text))
    other = Desk(one.store)
    await other.take(user("now"))
    assert await other.texts() == [*texts, "now", "to now"]
    prompt = await other.turns.prompt_of(SID, ACME, 6)
    assert prompt is not None
    assert [each["content"] for each in json.loads(prompt)["messages"]] == [*texts, "now"]


FORK = Sid("fork")


async def filled(desk: Desk) -> list[str]:
    """A session of which a copy takes several parts."""
    texts = [f"{number} " + "x" * (COPIED_BYTES // 2) for number in range(5)]
    for text in texts:
        await add(desk, user(text))
    return texts


async def test_a_copy_in_parts_is_the_session_and_goes_on() -> None:
    desk = Desk()
    texts = await filled(desk)
    assert await copy_session(desk.histories, SID, FORK, ACME.rules.tenant, 3600.0)
    assert not await copy_session(desk.histories, SID, FORK, ACME.rules.tenant, 3600.0)
    await desk.take(user("now"), sid=FORK)
    assert await desk.texts(FORK) == [*texts, "now", "to now"]
    assert await desk.texts() == texts


async def test_no_call_of_a_copy_is_large() -> None:
    desk = Desk()
    await filled(desk)
    sizes: list[int] = []
    store_append = desk.store.append

    async def watched(append: Append) -> int:
        sizes.append(sum(map(len, append.entries)))
        return await store_append(append)

    desk.store.append = watched  # type: ignore[method-assign]
    assert await copy_session(desk.histories, SID, FORK, ACME.rules.tenant, 3600.0)
    assert len(sizes) > 2
    assert max(sizes) < 1.1 * COPIED_BYTES


async def test_a_copy_that_fails_half_way_leaves_nothing() -> None:
    desk = Desk()
    await filled(desk)
    desk.store.fails["before append"] = 2
    with pytest.raises(StateUnavailable):
        await copy_session(desk.histories, SID, FORK, ACME.rules.tenant, 3600.0)
    assert await desk.store.load(FORK, ACME.rules.tenant, EMPTY) is None
    desk.store.fails.clear()
    assert await copy_session(desk.histories, SID, FORK, ACME.rules.tenant, 3600.0)


async def test_a_slow_reader_does_not_replace_what_is_known_better() -> None:
    desk = Desk()
    await desk.take(user("one"))
    old, _ = await Desk(desk.store).histories.load(SID, ACME.rules.tenant)
    await desk.take(user("two"))
    known = desk.histories.cache.known(SID)
    desk.histories.cache.keep(SID, old)
    assert desk.histories.cache.known(SID) == known
    await desk.take(user("three"))
    assert len(desk.dispatch.sent()) == 5


async def test_a_session_deleted_and_begun_anew_elsewhere_is_not_remembered() -> None:
    one = Desk()
    other = Desk(one.store)
    await one.take(user("old"))
    assert await other.store.delete(SID, ACME.rules.tenant)
    await other.take(user("new"))
    await one.take(user("more"))
    assert [each["content"] for each in one.dispatch.sent()] == ["new", "to new", "more"]


async def test_what_was_deleted_is_not_sent_in_a_session_that_took_its_name_and_has_nothing_yet() -> None:
    one = Desk()
    other = Desk(one.store)
    await one.take(user("old"))
    assert await other.store.delete(SID, ACME.rules.tenant)
    other.store.fails["before end"] = 1
    with pytest.raises(StateUnavailable):
        await add(other, user("lost"))
    await other.settled()
    await one.take(user("new"))
    assert one.dispatch.sent() == [user("new")]
    assert await one.texts() == ["new", "to new"]


async def test_a_session_lives_as_long_after_its_last_turn_as_it_was_told() -> None:
    desk = Desk()
    await desk.take(user("one"))
    desk.now += 3599.0
    await desk.take(user("two"))
    desk.now += 3599.0
    assert await desk.texts() == ["one", "to one", "two", "to two"]
    desk.now += 2.0
    with pytest.raises(SessionNotFound):
        await desk.texts()


# Items without a model, and prompts again


async def add(desk: Desk, *messages: dict[str, Any], **overrides: Any) -> list[str]:
    history, _ = await desk.turns.add(desk.ask(Incoming(model="", messages=messages, params={}), **overrides))
    return contents(history)


async def test_what_an_agent_adds_is_part_of_the_next_prompt() -> None:
    desk = Desk()
    assert await add(desk, user("note"), said("noted")) == ["note", "noted"]
    await desk.take(user("so?"))
    assert desk.dispatch.sent() == [user("note"), said("noted"), user("so?")]
    await add(desk, user("more"))
    assert await desk.texts() == ["note", "noted", "so?", "to so?", "more"]
    await desk.require_quiet()


async def test_what_agents_add_leaves_no_gaps_for_each_turns_record_to_list() -> None:
    desk = Desk()
    for number in range(20):
        await add(desk, user(f"{number}"))
    history, _ = await desk.histories.load(SID, ACME.rules.tenant)
    assert history.runs == [(1, 20)]


async def test_adding_is_repeated_once_and_refused_under_a_key_of_another_request() -> None:
    desk = Desk()
    await add(desk, user("note"), key="k-1", asked="a")
    assert await add(desk, user("note"), key="k-1", asked="a") == ["note"]
    with pytest.raises(InvalidRequest):
        await add(desk, user("other"), key="k-1", asked="b")
    assert await desk.texts() == ["note"]


async def test_adding_again_under_the_same_request_id_adds_nothing() -> None:
    desk = Desk()

    async def add(text: str, request_id: str) -> None:
        request = desk.ask(Incoming(model="", messages=[user(text)], params={}), asked=text)
        await desk.turns.add(replace(request, headers={"X-Request-Id": request_id}))

    for text, request_id in (("a", "1"), ("a", "1"), ("b", "1"), ("a", "2")):
        await add(text, request_id)
    assert await desk.texts() == ["a", "b", "a"]


async def test_items_without_a_message_are_refused_and_leave_the_session_free() -> None:
    desk = Desk()
    with pytest.raises(InvalidRequest, match="no message"):
        await add(desk)
    await desk.require_quiet()
    assert await add(desk, user("note")) == ["note"]


async def test_adding_waits_for_a_turn_under_way() -> None:
    desk = Desk()
    let_go = desk.points.held["before dispatch"] = asyncio.Event()
    turn = desk.begin(user("one"))
    await desk.points.reached.wait()
    with pytest.raises(SessionBusy):
        await add(desk, user("no"), on_busy="reject")
    adding = asyncio.create_task(add(desk, user("note")))
    await step()
    assert not adding.done()
    let_go.set()
    await turn
    assert await adding == ["one", "to one", "note"]


@pytest.mark.parametrize("place", ["before begin", "behind begin", "before end", "behind end"])
async def test_adding_cancelled_anywhere_is_done_wholly_or_not_at_all(place: str) -> None:
    desk = Desk()
    await desk.take(user("one"))
    desk.points.held[place] = asyncio.Event()
    desk.points.reached.clear()
    adding = asyncio.create_task(add(desk, user("a"), user("b")))
    await desk.points.reached.wait()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    del desk.points.held[place]
    await desk.require_quiet()
    assert await desk.texts() == ["one", "to one", *(["a", "b"] if place == "behind end" else [])]


async def test_a_turns_prompt_is_what_its_worker_was_sent_but_for_the_salt() -> None:
    desk = Desk()
    await desk.take({"role": "system", "content": "s"}, user("one"), tools=[{"type": "function"}], seed=7)
    desk.dispatch.scripts = [find_nobody]
    with pytest.raises(NoWorkerAvailable):
        await desk.take(user("lost"))
    await desk.take({"role": "system", "content": "t"}, user("two"), cache_salt="my own")
    for number, request in ((1, desk.dispatch.asked[0]), (2, desk.dispatch.asked[1]), (3, desk.dispatch.asked[2])):
        salt = json.loads(request.body)["cache_salt"].encode()
        told = await desk.turns.prompt_of(SID, ACME, number)
        assert told == request.body.replace(b',"cache_salt":"%b"' % salt, b"")
        assert salt not in told
        assert b"my own" not in told


async def test_a_copy_up_to_an_item_has_what_stands_before_it_and_not_what_was_written_before_it() -> None:
    desk = Desk()
    let_go = desk.points.held["behind dispatch"] = asyncio.Event()
    slow = desk.begin(user("slow"))
    await desk.points.reached.wait()
    desk.now += 16.0
    del desk.points.held["behind dispatch"]
    await desk.take(user("quick"))
    history, _ = await desk.histories.load(SID, ACME.rules.tenant)
    late = desk.histories.encode(history, [message(said("late"))], 1, ends=True)
    await desk.store.append(late_append(history.generation, late))
    history, _ = await desk.histories.load(SID, ACME.rules.tenant)
    assert contents(history) == ["slow", "late", "quick", "to quick"]
    assert await copy_session(desk.histories, SID, OTHER_SID, ACME.rules.tenant, 60.0, upto=history.items[1].number)
    assert await desk.texts(OTHER_SID) == ["slow", "late"]
    let_go.set()
    await slow


async def test_what_follows_a_turn_has_all_of_it_though_another_turns_end_came_late_amid_it() -> None:
    one = Desk()
    let_go = one.points.held["behind dispatch"] = asyncio.Event()
    slow = one.begin(user("slow"))
    await one.points.reached.wait()
    history, _ = await one.histories.load(SID, ACME.rules.tenant)
    late = one.histories.encode(history, [message(said("late"))], 1, ends=True)
    one.now += 16.0
    one.points.reached.clear()
    two = Desk(one.store)
    quick = two.begin(user("quick"))
    await one.points.reached.wait()
    await one.store.append(late_append(history.generation, late))
    let_go.set()
    await quick
    await one.take(user("next"))
    foreseen = TurnPosition(2, 3)
    assert await copy_session(one.histories, SID, OTHER_SID, ACME.rules.tenant, 60.0, upto=foreseen)
    assert await one.texts(OTHER_SID) == ["slow", "late", "quick", "to quick"]
    assert contents(await history_as_of(two.histories, SID, ACME.rules.tenant, foreseen)) == await one.texts(OTHER_SID)
    await slow


def late_append(generation: str, entries: list[bytes]) -> Append:
    return Append(
        sid=SID,
        owner=ACME.rules.tenant,
        generation=generation,
        fence=1,
        turn=1,
        entries=entries,
        ends=True,
        is_late=True,
        lifetime_s=60.0,
    )


async def test_turns_that_asked_no_model_have_no_prompt() -> None:
    desk = Desk()
    await add(desk, user("note"))
    assert await desk.turns.prompt_of(SID, ACME, 1) is None
    assert await desk.turns.prompt_of(SID, ACME, 2) is None
    assert await copy_session(desk.histories, SID, OTHER_SID, ACME.rules.tenant, 60.0)
    assert await desk.turns.prompt_of(OTHER_SID, ACME, 1) is None


async def test_what_was_only_guessed_is_no_prompt() -> None:
    one = Desk()
    await one.take(user("one"))
    two = Desk(one.store)
    with pytest.raises(InvalidRequest):
        await two.take(user("one"), said("to one"))
    assert not two.dispatch.asked
    assert await two.turns.prompt_of(SID, ACME, 2) is None
    await two.require_quiet()


async def test_another_tenants_session_has_no_prompts() -> None:
    desk = Desk()
    await desk.take(user("one"))
    beta = make_caller(TenantRules(tenant=Tenant("beta")), b"a secret of the tests")
    assert await desk.turns.prompt_of(SID, beta, 1) is None


# How much is held


async def test_nothing_grows_with_turns_that_are_over() -> None:
    desk = Desk()
    for number in range(50):
        await asyncio.gather(
            desk.take(user("a"), sid=Sid(f"{number:032}")), desk.take(user("b"), sid=Sid(f"{number:032}"))
        )
    await desk.settled()
    assert not desk.turns.claims.live
    assert not desk.waiting
    assert not desk.turns.claims.releaser.under_way


async def test_histories_in_memory_are_bounded_by_bytes_and_the_oldest_goes() -> None:
    desk = Desk()
    desk.histories.cache.max_bytes = 30_000
    for number in range(10):
        await desk.take(user("x" * 5_000), sid=Sid(f"{number:032}"))
    cache = desk.histories.cache
    assert cache.bytes <= cache.max_bytes
    assert cache.get(Sid(f"{9:032}")) is not None
    assert cache.get(Sid(f"{0:032}")) is None
    assert cache.bytes == sum(cache._sizes.values()) == sum(each.log.bytes for each in cache._histories.values())


async def test_models_that_are_not_there_and_others_errors_are_told_as_they_are() -> None:
    desk = Desk()

    async def miss(request: Request, client: Client, record: Record) -> None:
        raise ModelNotFound.of("m")

    desk.dispatch.scripts = [miss]
    with pytest.raises(RouterError) as missing:
        await desk.take(user("hi"))
    assert missing.value.status == 404
    assert outcomes(desk)["refused"] == 1
