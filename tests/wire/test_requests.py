"""What routing needs of a body: the prompt's bytes, its stable part, and nothing that the worker should judge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from router.core.errors import InvalidJson, InvalidRequest
from router.core.request.request import Request, Tenant
from router.core.request.routes import PromptForm, Route
from router.core.tenants.tenant import EVERYBODY, Caller, TenantRules, make_caller
from tests.wire.parsed import parse_request

ANYBODY = Caller(rules=EVERYBODY)
SECRET = b"a secret of all replicas"
LONG = "the fleet keeps what it has seen " * 100
SYSTEM = {"role": "system", "content": LONG}
USER = {"role": "user", "content": LONG[::-1]}
ASSISTANT = {"role": "assistant", "content": "yes, " * 300}
AGAIN = {"role": "user", "content": "and then? " * 200}


def parse(
    route: Route = Route.CHAT, headers: Mapping[str, str] | None = None, tenant: str = "", **body: Any
) -> Request:
    raw = json.dumps({"model": "m", **body}).encode()
    return parse_request(route, raw, headers or {}, caller(tenant, salt_secret=b""), "r-1")


def caller(tenant: str, group: str = "", salt_secret: bytes = SECRET) -> Caller:
    return make_caller(TenantRules(tenant=Tenant(tenant), sharing_group=group), salt_secret)


def shared(one: Request, other: Request) -> int:
    pairs = zip(one.fingerprint.hashes, other.fingerprint.hashes, strict=False)
    return sum(a == b for a, b in pairs)


def test_a_turn_shares_all_of_the_turn_before_it() -> None:
    before = parse(messages=[SYSTEM, USER])
    after = parse(messages=[SYSTEM, USER, ASSISTANT, AGAIN])
    assert shared(before, after) == len(before.fingerprint.hashes) >= 6
    assert before.anchor == after.anchor
    assert before.earlier_bytes == 0
    assert after.earlier_bytes == before.fingerprint.prompt_bytes + len("\nassistant\n") + len(
        str(ASSISTANT["content"])
    )


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"cache_salt": "s"}, {"tenant": "t"}, {"tools": [{"type": "function"}]}],
    ids=lambda change: next(iter(change)),
)
def test_other_models_salts_tenants_and_tools_share_nothing(change: dict[str, Any]) -> None:
    one, other = parse(messages=[SYSTEM, USER]), parse(messages=[SYSTEM, USER], **change)
    assert shared(one, other) == 0
    assert (one.anchor == other.anchor) == ("cache_salt" in change)


def test_the_anchor_ends_with_the_first_user_turn() -> None:
    other_user = {"role": "user", "content": "something else"}
    assert parse(messages=[SYSTEM, USER]).anchor != parse(messages=[SYSTEM, other_user]).anchor
    assert parse(messages=[SYSTEM, USER, ASSISTANT, AGAIN]).anchor == parse(messages=[SYSTEM, USER, AGAIN]).anchor


def test_a_list_of_text_parts_is_the_text() -> None:
    parts = [{"type": "text", "text": LONG[:1500]}, {"type": "text", "text": LONG[1500:]}]
    one, other = (
        parse(messages=[{"role": "user", "content": parts}]),
        parse(messages=[{"role": "user", "content": LONG}]),
    )
    assert one.fingerprint == other.fingerprint


def test_tool_calls_and_images_are_part_of_the_prompt() -> None:
    def call(name: str, **content: None) -> Request:
        calls = [{"id": "1", "type": "function", "function": {"name": name, "arguments": name * 1200}}]
        return parse(messages=[USER, {"role": "assistant", **content, "tool_calls": calls}])

    def image(url: str) -> Request:
        return parse(
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url + "x" * 1500}}]}]
        )

    assert call("a").fingerprint != call("b").fingerprint
    assert call("a", content=None).fingerprint != call("b", content=None).fingerprint
    assert image("a").fingerprint != image("b").fingerprint


def test_how_an_object_orders_its_keys_makes_no_difference() -> None:
    one = parse(messages=[{"role": "user", "content": [{"type": "x", "a": LONG}]}])
    other = parse(messages=[{"content": [{"a": LONG, "type": "x"}], "role": "user"}])
    assert one.fingerprint == other.fingerprint


def test_completions_take_text_texts_and_token_ids() -> None:
    text = parse(Route.COMPLETIONS, prompt=LONG)
    several = parse(Route.COMPLETIONS, prompt=[LONG, "other"])
    assert shared(text, several) == len(text.fingerprint.hashes)
    assert several.anchor == text.anchor
    assert several.fingerprint.prompt_bytes == text.fingerprint.prompt_bytes + len("other")
    ids = parse(Route.COMPLETIONS, prompt=list(range(1000)))
    assert len(ids.fingerprint.hashes) == 3
    assert shared(ids, parse(Route.COMPLETIONS, prompt=[*range(600), *range(400)])) == 2
    assert parse(Route.COMPLETIONS, prompt=[[1, 2], [3]]).fingerprint.prompt_bytes > 0
    assert parse(Route.COMPLETIONS, prompt=[]).fingerprint.prompt_bytes == 0


@pytest.mark.parametrize("ids", [[1, "2"], [1, -1], [1, 1 << 31], [1, 1.5]])
def test_token_ids_that_are_none_are_refused(ids: list[Any]) -> None:
    with pytest.raises(InvalidRequest) as found:
        parse(Route.COMPLETIONS, prompt=ids)
    assert found.value.param == "prompt"


def test_messages_have_their_system_prompt_first() -> None:
    one = parse(Route.MESSAGES, system=LONG, messages=[USER])
    parts = parse(Route.MESSAGES, system=[{"type": "text", "text": LONG}], messages=[USER])
    assert one.fingerprint == parts.fingerprint
    assert one.anchor == parts.anchor != parse(Route.MESSAGES, messages=[USER]).anchor
    assert shared(one, parse(Route.COUNT_TOKENS, system=LONG, messages=[AGAIN])) == len(LONG) // 1024


@pytest.mark.parametrize("route", [Route.EMBEDDINGS, Route.RERANK, Route.SCORE])
def test_pooling_routes_have_a_length_and_no_prefix(route: Route) -> None:
    found = parse(route, input=[LONG])
    assert list(found.fingerprint.hashes) == []
    assert found.fingerprint.prompt_bytes == len(found.body)
    assert not found.stream


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS])
@pytest.mark.parametrize(
    ("options", "after", "hides"),
    [
        (None, b'"stream_options":{"include_usage":true}', True),
        ({}, b'"stream_options": {"include_usage":true}', True),
        ({"include_usage": False}, b'"stream_options": {"include_usage":true}', True),
        ({"include_usage": True}, b'"stream_options": {"include_usage": true}', False),
        ({"x": 1}, b'"stream_options": {"x":1,"include_usage":true}', True),
    ],
)
def test_a_stream_is_asked_for_its_usage_and_nothing_else_is_touched(
    route: Route, options: dict[str, Any] | None, after: bytes, hides: bool
) -> None:
    body: dict[str, Any] = {"messages": [USER]} if route is Route.CHAT else {"prompt": "x"}
    given = json.dumps(
        {"model": "m", **body, "stream": True, **({"stream_options": options} if options is not None else {})}
    )
    found = parse_request(route, given.encode(), {}, ANYBODY, "")
    assert found.hides_usage == hides
    assert after in found.body
    before = given.encode().partition(b', "stream_options"')[0].removesuffix(b"}")
    assert found.body.startswith(before)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (Route.CHAT, b'{ "messages":[], "model" : "m" , "unknown": {"a": [1e5]} }\n'),
        (Route.CHAT, b'{"messages":[],"model":"m","stream":false}'),
        (Route.CHAT, b'{"messages":[],"model":"m","stream":null,"stream_options":null}'),
        (Route.MESSAGES, b'{"messages":[],"model":"m","stream":true}'),
        (Route.EMBEDDINGS, b'{"model":"m","input":"x","stream":true}'),
    ],
)
def test_every_other_body_goes_on_as_the_client_wrote_it(route: Route, body: bytes) -> None:
    found = parse_request(route, body, {}, ANYBODY, "")
    assert found.body == body
    assert not found.hides_usage


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (Route.CHAT, {"messages": []}, None),
        (Route.CHAT, {"model": "m"}, None),
        (Route.CHAT, {"model": 1, "messages": []}, "model"),
        (Route.CHAT, {"model": "m", "messages": "hi"}, "messages"),
        (Route.CHAT, {"model": "m", "messages": ["hi"]}, "messages[0]"),
        (Route.CHAT, {"model": "m", "messages": [], "stream": "yes"}, "stream"),
        (
            Route.CHAT,
            {"model": "m", "messages": [], "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
        (Route.COMPLETIONS, {"model": "m", "prompt": {}}, "prompt"),
        (Route.MESSAGES, {"model": "m", "messages": [], "system": 5}, "system"),
        (Route.EMBEDDINGS, {"input": "x"}, None),
    ],
)
def test_what_routing_cannot_do_without_is_refused_by_its_name(
    route: Route, body: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as found:
        parse_request(route, json.dumps(body).encode(), {}, ANYBODY, "")
    assert found.value.param == param
    assert "$" not in found.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model":"m","model":"n"}', b'{"model":"\\ud800"}'])
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        parse_request(Route.CHAT, body, {}, ANYBODY, "")


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX: y", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n", False),
        ("x", False),
    ],
)
def test_a_trace_context_is_passed_on_only_when_it_is_one(given: str, passed: bool) -> None:
    parsed = parse(messages=[], headers={"traceparent": given, "tracestate": "a=b"})
    assert (parsed.traceparent, parsed.tracestate) == ((given, "a=b") if passed else ("", ""))


@pytest.mark.parametrize("route", [Route.EMBEDDINGS, Route.RERANK, Route.SCORE, Route.COUNT_TOKENS])
def test_a_wish_to_stream_what_does_not_stream_is_left_to_the_worker(route: Route) -> None:
    body = b'{"model":"m","stream":true,"messages":[]}'
    found = parse_request(route, body, {}, ANYBODY, "r")
    assert not found.stream
    assert found.body == body


BODIES: dict[PromptForm, dict[str, Any]] = {
    PromptForm.MESSAGES: {"messages": [SYSTEM, USER]},
    PromptForm.ANTHROPIC: {"messages": [USER], "system": LONG},
    PromptForm.TEXT: {"prompt": LONG},
    PromptForm.NONE: {"input": LONG},
}


def salted(who: Caller, route: Route = Route.CHAT, **more: Any) -> Request:
    body = json.dumps({"model": "m", **BODIES[route.spec.prompt], **more}).encode()
    found = parse_request(route, body, {}, who, "")
    assert json.loads(found.body) == {**json.loads(body), "cache_salt": found.hidden_salt}
    return found


@pytest.mark.parametrize("route", Route)
@pytest.mark.parametrize("own", [None, "", "mine", 'a "quoted\\ one"'])
def test_every_body_gets_its_tenants_salt_in_place_of_the_clients_own(route: Route, own: str | None) -> None:
    one = salted(caller("a"), route, **({} if own is None else {"cache_salt": own}))
    assert one.hidden_salt == salted(caller("a"), route, cache_salt=own or None).hidden_salt
    assert (one.hidden_salt == salted(caller("a"), route).hidden_salt) == (not own)
    assert len(one.hidden_salt) == 43


def named(uuid: str | None) -> dict[Route, dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}, "uuid": uuid}
    inner = {"type": "tool_result", "content": [part]}
    return {
        Route.CHAT: {"messages": [SYSTEM, {"role": "user", "content": [part]}]},
        Route.MESSAGES: {"messages": [{"role": "user", "content": [inner]}]},
        Route.EMBEDDINGS: {"messages": [{"role": "user", "content": [part]}]},
        Route.SCORE: {"text_1": "x", "text_2": {"content": [part]}},
        Route.RERANK: {"query": "x", "documents": {"content": [part]}},
    }


@pytest.mark.parametrize("route", named(None))
def test_no_tenant_names_media_in_a_cache_that_all_of_them_share(route: Route) -> None:
    for body in (json.dumps(named("u")[route]), json.dumps(named("u")[route]).replace("uuid", "uu\\u0069d")):
        data = b'{"model":"m",' + body[1:].encode()
        with pytest.raises(InvalidRequest, match="uuid"):
            parse_request(route, data, {}, caller("a"), "")
        parse_request(route, data, {}, caller("a", salt_secret=b""), "")
    salted(caller("a"), route, **named(None)[route])


def test_what_only_looks_like_the_name_of_media_passes() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"uuid": {"type": "string"}}}}}
    salted(caller("a"), tools=[tool])
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {"uuid": "x"}}
    salted(caller("a"), Route.MESSAGES, messages=[USER, {"role": "assistant", "content": [call]}])


def test_no_own_salt_leads_to_anothers() -> None:
    a, b = caller("a"), caller("b")
    theirs = {salted(b).hidden_salt, salted(b, cache_salt="x").hidden_salt, b.salt_key.hex()}
    for own in ("b", "tenant:b", "x", *theirs):
        found = salted(a, cache_salt=own)
        assert found.hidden_salt not in theirs
        assert shared(found, salted(b)) == shared(found, salted(b, cache_salt="x")) == 0


def test_tenants_of_a_group_share_salt_blocks_and_anchor_and_no_others_do() -> None:
    one, other = salted(caller("a", "g")), salted(caller("b", "g"))
    assert one.hidden_salt == other.hidden_salt
    assert shared(one, other) == len(one.fingerprint.hashes) > 0
    assert one.anchor == other.anchor
    assert one.tenant != other.tenant
    for stranger in (caller("a"), caller("b"), caller("g"), caller("a", "h"), caller("a", "g", b"another secret")):
        found = salted(stranger)
        assert found.hidden_salt != one.hidden_salt
        assert shared(found, one) == 0
    assert salted(caller("g")).anchor != one.anchor


def test_sessions_of_one_name_are_two_where_tenants_share_a_group() -> None:
    one, other = salted(caller("a", "g"), user="u"), salted(caller("b", "g"), user="u")
    assert one.session != other.session


def test_salting_touches_nothing_else_of_the_body() -> None:
    body = b' {"model" : "m", "cache_salt" : "own" , "messages":[], "x": 1.50 , "stream":true}\n'
    found = parse_request(Route.CHAT, body, {}, caller("a"), "")
    ours = b'"%b"' % found.hidden_salt.encode()
    assert found.body == body.replace(b'"own"', ours).replace(
        b"true}", b'true,"stream_options":{"include_usage":true},"return_token_ids":true}'
    )


def test_without_a_secret_nothing_is_salted_and_the_clients_own_passes() -> None:
    body = b'{"model":"m","messages":[],"cache_salt":"own"}'
    found = parse_request(Route.CHAT, body, {}, ANYBODY, "")
    assert found.body == body
    assert found.hidden_salt == ""


def test_with_a_secret_and_no_keys_everybody_is_one_tenant_and_is_salted() -> None:
    everybody = make_caller(EVERYBODY, SECRET)
    assert salted(everybody).hidden_salt == salted(everybody).hidden_salt != ""
    assert salted(everybody).tenant == ""


@pytest.mark.parametrize(
    ("body", "answers", "most"),
    [
        ({"prompt": "p"}, 1, 16),
        ({"prompt": "p", "max_tokens": None}, 1, None),
        ({"prompt": "p", "max_tokens": 7}, 1, 7),
        ({"prompt": "p", "max_tokens": -7}, 1, None),
        ({"prompt": [1, 2, 3], "n": 2}, 2, 16),
        ({"prompt": ["p", "q", "r"], "n": 2, "best_of": 4}, 12, 16),
        ({"prompt": [[1], [2]]}, 2, 16),
        ({"prompt_embeds": "e"}, 1, 16),
        ({"prompt_embeds": ["e", "f", "g"]}, 3, 16),
        ({"prompt": ["p", "q"], "prompt_embeds": ["e", "f", "g"]}, 5, 16),
    ],
)
def test_a_completion_has_as_many_answers_and_tokens_as_its_worker_reads(
    body: dict[str, Any], answers: int, most: int | None
) -> None:
    request = parse(Route.COMPLETIONS, **body)
    assert (request.answers, request.max_answer_tokens) == (answers, most)


def test_a_chat_answer_may_be_as_long_as_its_newer_limit_says() -> None:
    assert parse(messages=[USER], max_tokens=9, max_completion_tokens=5).max_answer_tokens == 5
    assert parse(messages=[USER], max_tokens=9, max_completion_tokens=None).max_answer_tokens == 9
    assert parse(messages=[USER]).max_answer_tokens is None
