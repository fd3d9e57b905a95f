"""What a body may ask at the most, and what its media may name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.core.errors import InvalidJson, InvalidRequest
from router.core.request.routes import Route
from router.core.tenants.tenant import EVERYBODY, Caller
from router.wire.body_limits import BodyLimits, check_body
from router.wire.media import MediaRule
from tests.wire.parsed import parse_request

LIMITS = BodyLimits(
    max_json_depth=64,
    max_messages=5,
    max_inputs=5,
    max_choices=8,
    max_logprobs=20,
    max_stops=16,
    media=MediaRule(frozenset({"pictures.example", ".cdn.example", "[2001:db8::1]"})),
)
SMALL: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def parse(body: Any, route: Route = Route.CHAT) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    parse_request(route, data, {}, Caller(rules=EVERYBODY), "r-1", limits=LIMITS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n", [0, -1, 9, 10**30, 1.0, "1", "9", True, [1]]),
        ("best_of", [0, 9, 8.0, "8"]),
        ("max_tokens", [-1, 1 << 31, 1.5, "5", True, {}]),
        ("max_completion_tokens", [-1, 1 << 31, 10**400]),
        ("min_tokens", [-1, 1 << 31]),
        ("logprobs", [-1, 21, 1.0, "5"]),
        ("top_logprobs", [-1, 21]),
        ("prompt_logprobs", [-1, 21]),
        ("stop", [["x"] * 17, 5, ["x", 5], {"a": "b"}]),
        ("stop_sequences", [["x"] * 17]),
        ("messages", [[SMALL["messages"][0]] * 6]),
        ("prompt", [["x"] * 6, [[1, 2]] * 6]),
        ("input", [["x"] * 6]),
        ("documents", [["x"] * 6]),
        ("text_2", [["x"] * 6]),
    ],
)
def test_what_asks_for_too_much_is_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidRequest) as found:
            parse({**SMALL, name: value})
        assert found.value.param == name
        assert name in found.value.message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n", [None, 1, 8]),
        ("best_of", [None, 1, 8]),
        ("max_tokens", [None, 0, (1 << 31) - 1]),
        ("max_completion_tokens", [None, 1]),
        ("logprobs", [None, True, False, 0, 20]),
        ("top_logprobs", [None, 0, 20]),
        ("stop", [None, "x", [], ["x"] * 16]),
        ("messages", [SMALL["messages"] * 5]),
        ("prompt", ["x" * 6, ["x"] * 5, [1] * 6, [[1] * 6]]),
        ("input", [["x"] * 5, [1] * 6]),
        ("documents", [["x"] * 5, {"content": []}]),
    ],
)
def test_what_asks_for_no_more_than_is_allowed_passes(name: str, values: list[Any]) -> None:
    for value in values:
        parse({**SMALL, name: value})


def nested(depth: int, text: bytes = b"", kind: str = "[") -> bytes:
    """A body whose deepest object or list is the ``depth``-th."""
    opening, closing = (b"[", b"]") if kind == "[" else (b'{"a":', b"}")
    inner = opening * (depth - 1) + (b"" if kind == "[" else b"1") + closing * (depth - 1)
    return b'{"model":"m","messages":[],"text":"%b","x":%b}' % (text, inner)


@pytest.mark.parametrize("kind", ["[", "{"])
@pytest.mark.parametrize("text", [b"", b"{" * 100])
def test_depth_is_counted_exactly_however_many_brackets_the_text_has(kind: str, text: bytes) -> None:
    parse(nested(64, text, kind))
    for depth in (65, 500, 5000, 100_000):
        with pytest.raises(InvalidJson):
            parse(nested(depth, text, kind))


def test_a_wide_body_is_not_a_deep_one() -> None:
    parse({**SMALL, "tools": [{"type": "function", "function": {"name": str(n)}} for n in range(500)]})


REFUSED = [
    "http://pictures.example.evil/a",
    "http://user@pictures.example/a",
    "http://pictures.example@evil/a",
    "http://evil\\@pictures.example/",
    "http://pictures.example\\@evil/",
    "http://pictures.example:80@evil/",
    "http://cdn.example/a",
    "http://evilcdn.example/a",
    "http://pictures.example./a",
    "http://127.0.0.1/a",
    "http://2130706433/a",
    "http://0x7f.1/a",
    "http://[::1]/a",
    "http://169.254.169.254/latest/meta-data",
    "http://[::ffff:127.0.0.1]/",
    "//pictures.example/a",
    "ftp://pictures.example/a",
    "file:///etc/passwd",
    "gopher://pictures.example/",
    "http:pictures.example",
    "http:///pictures.example",
    " data:image/png;base64,AA",
    " http://pictures.example/a",
    "http://pictures.example/a\nX: y",
    "http://pictures.example /",
    "http://pictures.exam\u017fle/a",
    "pictures.example/a",
    "",
    5,
    ["http://pictures.example/a"],
]
ALLOWED = [
    "data:image/png;base64,AA",
    "DATA:,x",
    "http://pictures.example/a?b=c@d#e",
    "HTTPS://Pictures.Example:8443",
    "https://one.cdn.example/a",
    "https://one.two.cdn.example/a",
    "http://[2001:db8::1]:80/a",
]


def holders(url: Any) -> list[tuple[Route, dict[str, Any]]]:
    """Every place of a body that a worker takes media from."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": url},
        {"image_url": {"url": url}},
        {"type": "text", "text": "a", "image_url": url},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"url": url}},
        {"type": "image", "source": {"type": "url", "url": url}},
        {"type": "document", "source": {"type": "url", "url": url}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": url}}]},
        {"type": "document", "source": {"type": "content", "content": [{"image_url": url}]}},
    ]
    chats = [
        (Route.CHAT, {**SMALL, "messages": [*SMALL["messages"], {"role": "user", "content": [part]}]}) for part in parts
    ]
    part = parts[0]
    return [
        *chats,
        *((Route.MESSAGES, body) for _, body in chats),
        (Route.EMBEDDINGS, {"model": "m", "messages": [{"role": "user", "content": [part]}]}),
        (Route.RERANK, {"model": "m", "query": "a", "documents": {"content": [part]}}),
        (Route.SCORE, {"model": "m", "text_1": "a", "text_2": [{"content": [part]}]}),
    ]


@pytest.mark.parametrize("url", REFUSED)
def test_no_worker_is_made_to_fetch_what_was_not_listed(url: Any) -> None:
    for route, body in holders(url):
        with pytest.raises(InvalidRequest) as found:
            parse(body, route)
        assert "data: URI" in found.value.message


@pytest.mark.parametrize("url", ALLOWED)
def test_data_and_listed_hosts_pass(url: str) -> None:
    for route, body in holders(url):
        parse(body, route)


def test_a_key_that_is_written_by_its_numbers_is_the_same_key() -> None:
    body = json.dumps(holders("http://evil/")[-2][1]).encode().replace(b"image_url", b"image\\u005furl")
    with pytest.raises(InvalidRequest):
        parse(body, Route.RERANK)


def test_urls_that_nobody_fetches_are_text() -> None:
    parts = [
        {"type": "text", "text": "see http://evil/"},
        {"type": "tool_use", "id": "1", "name": "get", "input": {"url": "http://evil/", "image_url": "http://evil/"}},
        {"type": "search_result", "source": "http://evil/", "title": "t", "content": [{"type": "text", "text": "a"}]},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]
    parse({**SMALL, "messages": [{"role": "user", "content": parts}]}, Route.MESSAGES)


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
def test_where_workers_fetch_keys_and_values_is_not_for_clients_to_say(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        parse({**SMALL, "vllm_xargs": {name: "x"}})
    parse({**SMALL, "vllm_xargs": {"other": 1}})
    with pytest.raises(InvalidRequest, match=name):
        check_body({name: {"remote_host": "10.0.0.1"}}, b"{}", LIMITS)
    check_body({name: None}, b"{}", LIMITS)
