"""What a turn sends: the same as a client that sent everything itself, byte for byte whenever it is made anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.index.fingerprint import BLOCK_BYTES, Chain, fingerprint
from router.core.request.request import Request, Tenant
from router.core.request.routes import Route
from router.core.tenants.tenant import Caller, TenantRules, make_caller
from router.sessions.context.entry import decode
from router.sessions.context.history import History
from router.sessions.context.prompt import (
    HistoryDiffers,
    Incoming,
    NothingNew,
    Prompt,
    Recipe,
    Scope,
    find_news,
    join_body,
    make_prompt,
    replay,
)
from tests.sessions.context.logs import deletion, history, history_of, message, said, turn, user
from tests.wire.parsed import parse_request

CALLER: Caller = make_caller(TenantRules(tenant=Tenant("acme")), b"")
SCOPE = Scope("", CALLER.scope)
PARAMS = {"model": "m", "temperature": 0}
SYSTEM = {"role": "system", "content": "be brief"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"b": 1, "a": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"role":"user"}'}}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text("ab", min_size=900, max_size=1100)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=2)
MESSAGE: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(user, TEXT),
    st.builds(lambda parts: {"content": parts, "role": "user", "name": "n"}, PARTS),
    st.builds(said, TEXT),
    st.builds(lambda text: {"role": "assistant", "content": text, "tool_calls": [CALL]}, st.none() | TEXT),
    st.builds(lambda text: {"role": "tool", "content": text, "tool_call_id": "c1"}, TEXT),
    st.just(SYSTEM),
)
TALK = st.lists(st.lists(MESSAGE, min_size=1, max_size=3), min_size=1, max_size=6)


def incoming(*messages: dict[str, Any], **more: Any) -> Incoming:
    return Incoming(model="m", messages=messages, params={"temperature": 0}, **more)


def made(read: History, asked: Incoming) -> Prompt:
    return make_prompt(read, asked, find_news(read, asked, 4.0), SCOPE)


def body_of(prompt: Prompt) -> bytes:
    return join_body(prompt.messages, prompt.tools, msgspec.json.encode(PARAMS))


def stateless(body: bytes) -> Request:
    return parse_request(Route.CHAT, body, {}, CALLER, "r-1")


def log_of(talk: Sequence[Sequence[dict[str, Any]]]) -> list[bytes]:
    return [entry for number, messages in enumerate(talk, 1) for entry in turn(number, *messages)]


@given(st.binary(max_size=4 * BLOCK_BYTES), st.lists(st.integers(0, 4 * BLOCK_BYTES), max_size=8))
def test_a_chain_is_the_fingerprint_however_it_grew(prompt: bytes, cuts: list[int]) -> None:
    grown = Chain(model="m", cache_salt="s", tenant="t")
    edges = sorted({0, len(prompt), *(min(cut, len(prompt)) for cut in cuts)})
    for start, end in pairwise(edges):
        copy = grown.copy()
        grown.extend([prompt[start:end]])
        copy.extend([b"what another turn said"])
    whole = fingerprint([prompt], model="m", cache_salt="s", tenant="t")
    assert (list(grown.fingerprint().hashes), grown.prompt_bytes) == (list(whole.hashes), whole.prompt_bytes)


@given(TALK, st.lists(MESSAGE, min_size=1, max_size=3), st.lists(st.just(SYSTEM), max_size=2), st.booleans())
def test_a_session_sends_what_a_client_would_and_goes_where_that_would_go(
    talk: list[list[dict[str, Any]]], new: list[dict[str, Any]], system: list[dict[str, Any]], has_tools: bool
) -> None:
    asked = incoming(*new, turn_system=system, turn_tools=[TOOL] if has_tools else None)
    prompt = made(history(log_of(talk)), asked)
    request = stateless(body_of(prompt))
    sent = json.loads(request.body)
    assert sent["messages"] == [*system, *(each for messages in talk for each in messages), *new]
    assert sent.get("tools") == ([TOOL] if has_tools else None)
    assert (list(prompt.fingerprint.hashes), prompt.fingerprint.prompt_bytes) == (
        list(request.fingerprint.hashes),
        request.fingerprint.prompt_bytes,
    )
    assert prompt.anchor == request.anchor


def test_a_whole_conversation_has_one_anchor_through_either_door() -> None:
    read, anchors = history(), set()
    sent: list[dict[str, Any]] = [SYSTEM]
    for number in range(1, 6):
        asked = incoming(*([SYSTEM] if number == 1 else []), user(f"ask {number}"), tools=[TOOL], resends=True)
        drafts = find_news(read, asked, 4.0)
        prompt = make_prompt(read, asked, drafts, SCOPE)
        sent.append(user(f"ask {number}"))
        request = stateless(json.dumps({**PARAMS, "messages": sent, "tools": [TOOL]}).encode())
        assert prompt.fingerprint.prompt_bytes == request.fingerprint.prompt_bytes
        assert list(prompt.fingerprint.hashes) == list(request.fingerprint.hashes)
        assert prompt.earlier_bytes == request.earlier_bytes
        anchors |= {prompt.anchor, request.anchor}
        sent.append(said(f"answer {number}"))
        read.add(turn(number, *drafts, said(f"answer {number}")), read.head + 1)
    assert len(anchors) == 1


@pytest.mark.parametrize("change", [{"model": "n"}, {"salt": "s"}, {"name": "tenant:beta"}])
def test_prompts_of_other_models_salts_and_tenants_share_nothing(change: dict[str, str]) -> None:
    read = history_of([user("a" * 3000), said("b" * 3000)])
    one = made(read, incoming(user("c")))
    asked = Incoming(model=change.get("model", "m"), messages=[user("c")], params={})
    scope = Scope(change.get("salt", ""), change.get("name", SCOPE.name))
    other = make_prompt(read, asked, find_news(read, asked, 4.0), scope)
    assert not set(one.fingerprint.hashes) & set(other.fingerprint.hashes)
    assert made(read, incoming(user("c"))).fingerprint == one.fingerprint


def test_a_turn_that_came_to_nothing_leaves_no_trace_in_the_next_prompt() -> None:
    read = history_of([user("a"), said("b")])
    before = body_of(made(read, incoming(user("c"))))
    made(read, incoming(user("lost " * 1000)))
    read.add(turn(2, user("lost " * 1000), ends=False), 3)
    after = made(read, incoming(user("c")))
    assert body_of(after) == before
    assert list(after.fingerprint.hashes) == list(stateless(before).fingerprint.hashes)


@given(TALK, st.lists(st.integers(0, 30), max_size=4))
def test_the_same_log_gives_the_same_bytes_however_it_was_read(
    talk: list[list[dict[str, Any]]], cuts: list[int]
) -> None:
    log, asked = log_of(talk), incoming(user("and now?"))
    read = history()
    edges = sorted({0, len(log), *(min(cut, len(log)) for cut in cuts)})
    for start, end in pairwise(edges):
        read.add(log[start:end], start + 1)
        made(read, asked)
    one, other = made(read, asked), made(history(log), asked)
    assert one == other


def told_again(read: History, log: list[bytes], asked: Incoming, number: int) -> tuple[bytes, bytes]:
    """What a turn sends, and what its recipe says of it when the log has the turn, and others behind it."""
    drafts = find_news(read, asked, 4.0)
    prompt = make_prompt(read, asked, drafts, SCOPE)
    recipe = prompt.recipe.with_own(drafts, read.head, msgspec.json.encode(PARAMS))
    kept = msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe)
    later = [*log, *turn(number, *drafts, said("x")), *turn(number + 1, user("later"), said("y"))]
    entries = {at: decode(entry) for at, entry in enumerate(later, 1)}
    return body_of(prompt), replay(kept, entries)


@given(TALK, st.lists(MESSAGE, min_size=1, max_size=3), st.sets(st.integers(1, 8)), st.booleans(), st.booleans())
def test_a_recipe_gives_the_bytes_that_were_sent(
    talk: list[list[dict[str, Any]]],
    new: list[dict[str, Any]],
    deleted: set[int],
    has_own: bool,
    has_tools: bool,
) -> None:
    log = log_of(talk)
    for number, gone in enumerate(sorted(deleted), len(talk) + 1):
        log += turn(number, deletion(gone, gone % 3 - 1))
    asked = incoming(
        *new,
        turn_system=[SYSTEM] if has_own else [],
        turn_tools=[] if has_own else None,
        tools=[TOOL] if has_tools else None,
    )
    sent, again = told_again(history(log), log, asked, 50)
    assert sent == again


def test_a_recipe_has_the_tool_calls_that_were_left_when_it_was_sent() -> None:
    calls = [{**CALL, "id": name} for name in "xyz"]
    log = turn(1, user("a"), {"role": "assistant", "content": None, "tool_calls": calls})
    log += turn(2, deletion(2, 2))
    sent, again = told_again(history(log), log, incoming(user("b")), 3)
    assert sent == again
    assert b'"y"' not in sent
    assert b'"z"' in sent


@pytest.mark.parametrize("gone", [(-1,), (0,), (-1, 0), (0, 2, 1), (3, -1, 1, 0)])
def test_a_recipe_has_the_parts_that_were_left_when_it_was_sent(gone: tuple[int, ...]) -> None:
    calls = [{**CALL, "id": name} for name in "xyz"]
    said_all = {"role": "assistant", "tool_calls": calls, "content": "text of it", "reasoning": "thoughts"}
    log = turn(1, user("a"), said_all)
    for number, part in enumerate(gone, 2):
        log += turn(number, deletion(2, part))
    sent, again = told_again(history(log), log, incoming(user("b")), 9)
    assert sent == again
    assert (b"text of it" in sent, b"thoughts" in sent) == (0 not in gone, -1 not in gone)
    left = msgspec.json.decode(sent)["messages"][1]["tool_calls"]
    assert [call["id"] for call in left] == [name for number, name in enumerate("xyz", 1) if number not in gone]


def test_a_recipe_whose_entries_are_gone_says_so() -> None:
    with pytest.raises(KeyError):
        replay(Recipe(items=[(1, 2)]), {1: decode(turn(1, user("a"))[0])})


def kinds(read: History, asked: Incoming) -> list[str]:
    return [draft.kind.value for draft in find_news(read, asked, 4.0)]


def with_settings() -> History:
    asked = incoming(SYSTEM, user("a"), tools=[TOOL], resends=True)
    read = history()
    read.add(turn(1, *find_news(read, asked, 4.0), said("b")), 1)
    return read


def test_system_and_tools_are_written_once_and_again_when_they_change() -> None:
    first = incoming(SYSTEM, user("a"), tools=[TOOL], resends=True)
    assert kinds(history(), first) == ["system", "tools", "message"]
    read = with_settings()
    assert kinds(read, incoming(SYSTEM, user("c"), tools=[TOOL], resends=True)) == ["message"]
    assert kinds(read, incoming(user("c"), resends=True)) == ["message"]
    assert kinds(read, incoming({**SYSTEM, "content": "be long"}, user("c"), resends=True)) == ["system", "message"]
    assert kinds(read, incoming(user("c"), tools=[], resends=True)) == ["tools", "message"]


def test_the_settings_hold_until_they_are_replaced() -> None:
    read = with_settings()
    held = json.loads(body_of(made(read, incoming(user("c")))))
    assert (held["messages"][0], held["tools"]) == (SYSTEM, [TOOL])
    asked = incoming({"role": "developer", "content": "new"}, user("c"), tools=[], resends=True)
    replaced = json.loads(body_of(made(read, asked)))
    assert [each["role"] for each in replaced["messages"]] == ["developer", "user", "assistant", "user"]
    assert "tools" not in replaced


def test_a_history_that_is_sent_again_is_not_written_again() -> None:
    read = with_settings()
    again = incoming(SYSTEM, user("a"), said("b"), user("c"), resends=True)
    assert [draft.body for draft in find_news(read, again, 4.0)] == [message(user("c")).body]
    assert body_of(made(read, again)) == body_of(made(read, incoming(user("c"))))


def test_a_door_that_does_not_resend_writes_all_that_it_is_given() -> None:
    assert kinds(with_settings(), incoming(SYSTEM, user("a"), said("b"))) == ["message"] * 3


def test_another_history_and_nothing_new_are_told_apart() -> None:
    read = with_settings()
    with pytest.raises(HistoryDiffers):
        find_news(read, incoming(user("a"), said("edited"), user("c"), resends=True), 4.0)
    for messages in ([user("a"), said("b")], [SYSTEM], [said("b")]):
        with pytest.raises(NothingNew):
            find_news(read, incoming(*messages, resends=True), 4.0)


def test_every_item_weighs_a_token_at_least() -> None:
    assert [draft.tokens for draft in find_news(history(), incoming(user("")), 1e9)] == [1]


def test_what_only_one_turn_says_is_in_no_other() -> None:
    read = history_of([user("a"), said("b")])
    own = json.loads(body_of(made(read, incoming(user("c"), turn_system=[SYSTEM], turn_tools=[TOOL]))))
    assert (own["messages"][0], own["tools"]) == (SYSTEM, [TOOL])
    after = json.loads(body_of(made(read, incoming(user("c")))))
    assert "tools" not in after
    assert SYSTEM not in after["messages"]


def test_a_body_without_params_or_tools_is_whole() -> None:
    assert json.loads(join_body([], b"", b"{}")) == {"messages": []}
    assert json.loads(join_body([b"{}"], b"[1]", b'{"a":2}')) == {"messages": [{}], "tools": [1], "a": 2}


@pytest.mark.parametrize("resends", [False, True])
def test_messages_have_the_tokens_that_were_counted_and_only_the_new_ones_are_added(resends: bool) -> None:
    sent = [user("a"), said("b"), user("c")] if resends else [user("c")]
    asked = Incoming(model="m", messages=sent, params={}, resends=resends, counts=[7, 8, 9][-len(sent) :])
    (draft,) = find_news(history(turn(1, user("a"), said("b"))), asked, 4.0)
    assert draft.tokens == 9
