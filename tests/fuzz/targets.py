"""Every parser of bytes that others choose, as a function of bytes. It returns, whatever they are; an error that the parser
does not declare goes through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from router.core.errors import ClientError, InvalidJson, MalformedRequest
from router.core.request.routes import Route
from router.core.tenants.tenant import EVERYBODY, Caller
from router.sessions.openai.input import read_create
from router.sessions.openai.items import items_of
from router.sessions.openai.output import translate
from router.sessions.openai.shapes import Head, response
from router.sessions.openai.stream import ResponseEvents
from router.wire.body_limits import BodyLimits
from router.wire.client_head import check_fields, check_target
from router.wire.dialects import DIALECTS, read_error
from router.wire.events import take_events
from router.wire.framing import ChunkedReader, frame
from router.wire.media import MediaRule
from router.wire.reply_head import BadHead, body_reader, parse_head
from router.wire.sse import StreamFilter
from router.wire.strict_json import decode_object, set_members
from tests.wire.parsed import parse_request

LIMITS = BodyLimits(
    max_json_depth=64,
    max_messages=2048,
    max_inputs=5,
    max_choices=8,
    max_logprobs=20,
    max_stops=16,
    media=MediaRule(frozenset({"pictures.example", ".cdn.example"})),
)
ROUTES = tuple(Route)
STREAMING = tuple(DIALECTS)


def json(data: bytes) -> None:
    """What is accepted can be spliced, and is then the same but for what was set."""
    try:
        members = decode_object(data)
    except InvalidJson:
        return
    spliced = decode_object(set_members(data, members, {"model": b'"spliced"'}))
    assert spliced == {**members, "model": "spliced"}


def request(data: bytes) -> None:
    """The first byte says which route."""
    with contextlib.suppress(ClientError):
        parse_request(
            ROUTES[data[0] % len(ROUTES)] if data else Route.CHAT,
            data[1:],
            {},
            Caller(rules=EVERYBODY),
            "r",
            limits=LIMITS,
        )


def client_head(data: bytes) -> None:
    line, *lines = data.split(b"\n")
    fields = [(name, value) for name, _, value in (each.partition(b":") for each in lines)]
    with contextlib.suppress(MalformedRequest):
        check_target("GET", line.decode("latin-1"))
    for version in ((1, 0), (1, 1)):
        with contextlib.suppress(MalformedRequest):
            check_fields(fields, version)


def reply_head(data: bytes) -> None:
    with contextlib.suppress(BadHead):
        body_reader(parse_head(data))


def framing(data: bytes) -> None:
    """However the bytes are cut, the payload is the same, and so is whether they are wrong."""
    whole, bytewise = ChunkedReader(), ChunkedReader()
    payload, error = whole.feed(data)
    pieces, broken = [], False
    for at in range(len(data)):
        if bytewise.finished or broken:
            break
        piece, bad = bytewise.feed(data[at : at + 1])
        pieces.append(piece)
        broken = bad is not None
    assert b"".join(pieces) == payload
    assert broken == (error is not None)
    assert bytewise.finished == whole.finished


def sse(data: bytes) -> None:
    """The first byte says which dialect, and what is hidden."""
    if not data:
        return
    kind, data = data[0], data[1:]
    watch = StreamFilter(
        DIALECTS[STREAMING[kind % len(STREAMING)]], hides_usage=bool(kind & 32), hides_ids=bool(kind & 64)
    )
    held = bytearray()
    events = take_events(held, data)
    assert events + held == data
    framed = frame(events)
    if events and watch.is_plain(framed):
        watch.pass_frame(framed, framed.index(b"\r\n") + 2)
    watch.take(events)
    watch.rest()
    read_error(data)


def _head(echo: Mapping[str, object]) -> Head:
    return Head("resp_1", 0, echo, lambda part: f"item_{part}", wants_logprobs=True)


def responses(data: bytes) -> None:
    """What is accepted can be told again, and shown as items."""
    try:
        members = decode_object(data)
        asked = read_create(members, LIMITS)
    except ClientError:
        return
    msgspec.json.encode([asked.params, response(_head(asked.echo), "in_progress")])
    items_of(enumerate(asked.messages), lambda number, part: f"item_{number}_{part}")


def answers(data: bytes) -> None:
    """A worker's, whole and as events: there is a response in any case, and it is the last that is told."""
    msgspec.json.encode(translate(data, _head({}), 0).response)
    answer = ResponseEvents(_head({}))
    told = answer.begin() + answer.feed(data) + answer.finish(0)
    assert answer.outcome is not None
    last = told.rpartition(b"\nevent: ")[2].partition(b"data: ")[2]
    assert decode_object(last)["response"] == msgspec.json.decode(msgspec.json.encode(answer.outcome.response))


TARGETS: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {
        "json": json,
        "request": request,
        "client_head": client_head,
        "reply_head": reply_head,
        "framing": framing,
        "sse": sse,
        "responses": responses,
        "answers": answers,
    }
)

SEEDS: Mapping[str, tuple[bytes, ...]] = MappingProxyType(
    {
        "json": (b'{"model":"m","a":[1,-2.5e3,true,null,"\\u00e9\\""],"b":{"c":{}}}', b' { "a" : "x" } '),
        "request": (
            b'\x00{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"n":1,"stop":["a"]}',
            b'\x00{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:,x"}}]}],"logprobs":5}',
            b'\x01{"model":"m","prompt":[1,2,3],"max_tokens":5,"stream_options":{"include_usage":false}}',
            b'\x05{"model":"m","system":[{"type":"text","text":"a"}],"messages":[{"role":"assistant","content":null}]}',
        ),
        "client_head": (
            b"/v1/models?a=b\nHost: r:80\nContent-Length: 5\nAccept: */*",
            b"http://r/health\nHost:[::1]\nTransfer-Encoding:chunked\nExpect:100-continue",
        ),
        "reply_head": (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.0 404 X\r\nContent-Length: 12\r\nConnection: keep-alive\r\n\r\n",
        ),
        "framing": (b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n", b"1\r\na\r\n0\r\n\r\n"),
        "sse": (
            b"".join(
                (
                    b'\x20data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n',
                    b'data: {"choices":[],"usage":{"prompt_tokens":9},"system_fingerprint":"v"}\n\ndata: [DONE]\n\n',
                )
            ),
            b'\x60data: {"choices":[{"token_ids":[1,2]}],"prompt_token_ids":[1]}\r\n\r\ndata: {"error":{"code":400}}\n\n',
            b'\x60data: {"choices":[{"delta":{"content":"a"},"token_ids":[1,2]}]}\n\n',
            b"\x02event: message_stop\ndata: {}\n\n: comment\n\n",
        ),
        "responses": (
            b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}],"store":false,"top_k":1}',
            b'{"model":"m","input":[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}],"temperature":1}',
            b'{"model":"m","input":"a","tools":[{"type":"function","name":"f"}],"text":{"format":{"type":"text"}}}',
        ),
        "answers": (
            b'{"choices":[{"index":0,"message":{"content":"a","reasoning":"b"},"finish_reason":"stop"}],"usage":{}}',
            b'data: {"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"token":"a"}]}}]}\n\ndata: [DONE]\n\n',
            b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{}"}}]}}]}\n\n',
        ),
    }
)
