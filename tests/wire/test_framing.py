"""Bodies end where their framing says, for any way in which the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.framing import LAST_CHUNK, BadFraming, BodyReader, ChunkedReader, LengthReader, UntilClosed, frame
from tests.wire.cuts import cut, cuts


def read(reader: BodyReader, pieces: list[bytes]) -> tuple[bytes, BadFraming | None]:
    payload = b""
    for piece in pieces:
        more, error = reader.feed(piece)
        payload += more
        if error is not None:
            return payload, error
    return payload, None


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.binary(max_size=10), cuts())
def test_chunks_give_the_same_payload_and_surplus_however_they_are_cut(
    chunks: list[bytes], surplus: bytes, places: list[int]
) -> None:
    reader = ChunkedReader()
    body = b"".join(map(frame, chunks)) + LAST_CHUNK
    payload, error = read(reader, cut(body, places))
    assert (payload, error, reader.finished, reader.surplus) == (b"".join(chunks), None, True, b"")
    reader = ChunkedReader()
    assert reader.feed(body + surplus)[0] == payload
    assert reader.surplus == surplus


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), cuts())
def test_between_two_chunks_is_a_boundary_and_nowhere_else(chunks: list[bytes], places: list[int]) -> None:
    reader = ChunkedReader()
    at, boundaries = 0, {0}
    for chunk in chunks:
        boundaries.add(max(boundaries) + len(frame(chunk)))
    for piece in cut(b"".join(map(frame, chunks)), places):
        reader.feed(piece)
        at += len(piece)
        assert reader.at_boundary == (at in boundaries)


@pytest.mark.parametrize(
    "line",
    [
        b"+5",
        b"0x5",
        b"1_0",
        b"-5",
        b" 5",
        b"",
        b"5g",
        b"123456789",
        b"\xd9\xa5",
        b"5\n",
        b";x",
        b"5 x",
        b"5;" + b"x" * 1100,
    ],
)
def test_a_size_that_two_readers_could_take_differently_is_an_error(line: bytes) -> None:
    for body in ([line + b"\r\nhello\r\n"], [bytes([byte]) for byte in line + b"\r\nhello\r\n"]):
        reader = ChunkedReader()
        payload, error = read(reader, body)
        assert payload == b""
        assert error is not None


@pytest.mark.parametrize("line", [b"5", b"05", b"00000005", b"5;name=value", b"5 ;x", b"5 \t"])
def test_a_size_may_have_zeros_before_it_and_an_extension_behind(line: bytes) -> None:
    assert ChunkedReader().feed(line + b"\r\nhello\r\n") == (b"hello", None)


@pytest.mark.parametrize(
    "body", [b"5\r\nhelloX", b"5\r\nhello\n", b"5\r\nhelloo\r\n", b"5\nhello\r\n", b"5\r\nhello\rX"]
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_chunk_that_does_not_end_with_its_size_is_an_error_and_what_was_right_is_given(
    body: bytes, bytewise: bool
) -> None:
    reader = ChunkedReader()
    payload, error = read(reader, [bytes([byte]) for byte in body] if bytewise else [body])
    assert b"hello".startswith(payload)
    assert error is not None
    assert not reader.finished


def test_whole_chunks_before_an_error_are_given() -> None:
    payload, error = ChunkedReader().feed(frame(b"one") + frame(b"two") + b"zzz\r\n")
    assert payload == b"onetwo"
    assert error is not None


def test_trailers_are_read_and_dropped() -> None:
    reader = ChunkedReader()
    assert reader.feed(frame(b"x") + b"0\r\nServer-Timing: a\r\nOther: b\r\n\r\nnext") == (b"x", None)
    assert (reader.finished, reader.surplus) == (True, b"next")


def test_a_line_without_end_is_an_error_before_it_takes_memory() -> None:
    reader = ChunkedReader()
    assert any(reader.feed(b"0" * 100)[1] is not None for _ in range(20))


@given(st.integers(0, 60), st.binary(max_size=60), cuts())
def test_a_length_is_kept_to_the_byte(length: int, data: bytes, places: list[int]) -> None:
    reader = LengthReader(length)
    payload = b""
    for piece in cut(data, places):
        if reader.finished:
            break
        payload += reader.feed(piece)[0]
    assert payload == data[:length]
    assert reader.finished == (len(data) >= length)
    whole = LengthReader(length)
    whole.feed(data)
    assert whole.surplus == data[length:]


def test_a_body_without_framing_never_ends_by_itself() -> None:
    reader = UntilClosed()
    assert reader.feed(LAST_CHUNK) == (LAST_CHUNK, None)
    assert not reader.finished
