"""Bodies are read as the standard library reads them, but for what two parsers could read differently."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.errors import InvalidJson
from router.wire.strict_json import SLICED_BYTES, apply_edits, decode_object, set_members

KEYS = st.sampled_from(["a", "b", "c", 'q"', "\\", "é"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.sampled_from('a"\\\n/é😀\x00\x7f'), max_size=5),
)


def a_string(text: str, ascii_only: bool, by_number: bool) -> str:
    written = json.dumps(text, ensure_ascii=ascii_only)
    return written.replace('\\"', "\\u0022").replace("a", "\\u0061") if by_number else written


@st.composite
def texts(draw: st.DrawFn, depth: int = 3) -> str:
    """A JSON value as somebody might write it: spaces, escapes, and now and then a key twice."""
    kind = draw(st.sampled_from(["scalar", "array", "object"] if depth else ["scalar"]))
    space = draw(st.sampled_from(["", "", " ", "\n\t"]))
    if kind == "scalar":
        value = draw(SCALARS)
        text = (
            a_string(value, draw(st.booleans()), draw(st.booleans())) if isinstance(value, str) else json.dumps(value)
        )
        return space + text
    if kind == "array":
        return space + "[" + ",".join(draw(st.lists(texts(depth - 1), max_size=3))) + space + "]"
    return draw(objects(depth))


@st.composite
def objects(draw: st.DrawFn, depth: int = 3) -> str:
    members = draw(st.lists(st.tuples(KEYS, st.booleans(), texts(depth - 1)), max_size=4))
    space = draw(st.sampled_from(["", " "]))
    return "{" + ",".join(f"{space}{a_string(k, True, n)}{space}:{v}" for k, n, v in members) + space + "}"


def reference(body: bytes) -> dict[str, Any] | None:
    """What the standard library makes of it, with everything refused that is to be; None: refused."""

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(members)) != len(members):
            raise ValueError("twice")
        return dict(members)

    def constant(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        value = json.loads(body.decode(), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def decoded(body: bytes) -> dict[str, Any] | None:
    try:
        return decode_object(body)
    except InvalidJson:
        return None


@given(objects())
def test_every_object_is_read_as_the_standard_library_reads_it_and_duplicates_are_refused(text: str) -> None:
    assert decoded(text.encode()) == reference(text.encode())


@given(objects(), st.data())
def test_a_damaged_body_is_refused_wherever_the_standard_library_refuses_it(text: str, data: st.DataObject) -> None:
    body = bytearray(text.encode())
    at = data.draw(st.integers(0, len(body) - 1))
    body[at : at + data.draw(st.integers(0, 2))] = data.draw(
        st.sampled_from([b"", b"\x00", b'"', b"}", b",", b"\xff", b"\\"])
    )
    expected, found = reference(bytes(body)), decoded(bytes(body))
    assert found == expected or (found is None and is_no_text(expected))


def is_no_text(value: object) -> bool:
    """Half a surrogate pair is in it: the standard library takes what no text can be."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a": 1, "a": 1}',
        '{"a":{"b":[{"c":1,"c":2}]}}',
        '{"a":[[[[{"x":"\\"","x":"\\""}]]]]}',
        '{"a":1,"\\u0061":2}',
        '{"a":"\\u0022","a":"\\u0022\\u0022\\u0022"}',
        '{"k":"\\u0022\\u0022","a":1,"a":2}',
        '{"\\\\":1,"\\\\":2}',
        '{"a":"x\\\\","a":"y"}',
    ],
)
def test_a_key_given_twice_is_refused_at_any_depth_and_however_it_is_written(text: str) -> None:
    with pytest.raises(InvalidJson, match="duplicate"):
        decode_object(text.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'"a"',
        b"null",
        b"{}{}",
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\ude00 \\ud83d"}',
        b'{ "a" : "\\ud83d\\u0041" }',
        b'{"\\ud800":1}',
        b'{"a":"\n"}',
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":01}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b'{"a":' + b"[" * 200_000,
        '{"a":1}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_plain_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        decode_object(body)


def test_integers_of_any_size_up_to_pythons_own_limit_are_exact() -> None:
    assert decode_object(b'{"a":%b}' % (b"9" * 400)) == {"a": int("9" * 400)}


@given(objects(), st.sampled_from(["a", "b", "stream_options", "c"]), st.sampled_from([b"{}", b"1", b'{"x":[1,"}"]}']))
def test_setting_a_member_changes_its_value_and_no_other_byte(text: str, name: str, value: bytes) -> None:
    body = text.encode()
    members = decoded(body)
    if members is None:
        return
    after = set_members(body, members, {name: value})
    assert decode_object(after) == {**members, name: json.loads(value)}
    start = next((i for i in range(min(len(body), len(after))) if body[i] != after[i]), min(len(body), len(after)))
    tail = next(i for i in range(len(body) + 1) if i == len(body) - start or body[-1 - i] != after[-1 - i])
    if name not in members:
        added = (b"," if members else b"") + json.dumps(name).encode() + b":" + value
        at = body.rindex(b"}")
        assert after == body[:at] + added + body[at:]
    else:
        old = body[start : len(body) - tail]
        assert len(old) <= len(body) - len(json.dumps(name)) - 1
        assert body[:start] + after[start : len(after) - tail] + body[len(body) - tail :] == after


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b'{"a":1,"so":{"x":1},"b":2}', b'{"a":1,"so":V,"b":2}'),
        (b'{ "a" : "}" , "so" : null }', b'{ "a" : "}" , "so" : V }'),
        (b'{"\\"so":1,"so":[1,"so"]}', b'{"\\"so":1,"so":V}'),
        (b'{"x":{"so":1},"so":2}', b'{"x":{"so":1},"so":V}'),
        (b'{"x\\\\":"\\\\","s\\u006f":2}', b'{"x\\\\":"\\\\","s\\u006f":V}'),
        (b"{}", b'{"so":V}'),
        (b" { \n } \n", b' { \n "so":V} \n'),
        (b'{"a":"so"} ', b'{"a":"so","so":V} '),
    ],
)
def test_a_member_is_cut_out_by_its_place_and_not_by_its_looks(body: bytes, after: bytes) -> None:
    assert set_members(body, decode_object(body), {"so": b"V"}) == after


def test_numbers_that_are_not_finite_never_come_out() -> None:
    for text in (b"1e308", b"-1e308", b"5e-324"):
        assert math.isfinite(decode_object(b'{"a":%b}' % text)["a"])


@pytest.mark.parametrize("size", [10, SLICED_BYTES, SLICED_BYTES + 1, 1 << 20])
def test_a_body_of_any_size_is_changed_where_it_should_be_and_nowhere_else(size: int) -> None:
    body = b'{"a":1,"stream":false,"text":"%b"}' % (b"x" * size)
    changed = set_members(body, decode_object(body), {"stream": b"true", "seed": b"7"})
    assert changed == b'{"a":1,"stream":true,"text":"%b","seed":7}' % (b"x" * size)
    assert type(changed) is bytes


def test_a_large_body_is_copied_once() -> None:
    body = b'{"a":1,"text":"%b"}' % (b"x" * (4 << 20))
    tracemalloc.start()
    try:
        apply_edits(body, [(len(body) - 1, len(body) - 1, b',"seed":7')])
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(body)
    finally:
        tracemalloc.stop()
