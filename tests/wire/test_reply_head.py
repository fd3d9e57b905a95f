"""A worker's head is understood in one way or refused."""

from __future__ import annotations

import pytest

from router.wire.framing import ChunkedReader, LengthReader, UntilClosed
from router.wire.reply_head import BadHead, body_reader, parse_head


def head(*lines: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join((status, *lines, "", "")).encode()


def test_names_are_in_lower_case_and_values_as_they_came() -> None:
    found = parse_head(head("Content-Type: Application/JSON", "X-A:b"))
    assert found.status == 200
    assert found.headers == {b"content-type": b"Application/JSON", b"x-a": b"b"}


@pytest.mark.parametrize(
    ("lines", "status", "reader", "keeps_alive"),
    [
        (("Content-Length: 3",), "HTTP/1.1 200 OK", LengthReader, True),
        (("Transfer-Encoding: Chunked",), "HTTP/1.1 200 OK", ChunkedReader, True),
        ((), "HTTP/1.1 200 OK", UntilClosed, True),
        (("Content-Length: 0",), "HTTP/1.1 200 OK", LengthReader, True),
        (("Content-Length: 0", "Connection: Close"), "HTTP/1.1 200 OK", LengthReader, False),
        (("Connection: close",), "HTTP/1.1 204 No Content", LengthReader, False),
        ((), "HTTP/1.0 200 OK", UntilClosed, False),
        (("Content-Length: 3", "Connection: close"), "HTTP/1.1 200 OK", LengthReader, False),
        (("Content-Length: 3",), "HTTP/1.0 200 OK", LengthReader, False),
        (("Content-Length: 3", "Connection: keep-alive"), "HTTP/1.0 200 OK", LengthReader, True),
    ],
)
def test_the_framing_decides_how_a_body_ends_and_whether_the_connection_lives(
    lines: tuple[str, ...], status: str, reader: type, keeps_alive: bool
) -> None:
    found = parse_head(head(*lines, status=status))
    assert type(body_reader(found)) is reader
    assert found.keeps_alive == keeps_alive


@pytest.mark.parametrize("status", ["HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified"])
def test_a_bodiless_status_has_no_body_whatever_its_headers_say(status: str) -> None:
    assert body_reader(parse_head(head("Content-Length: 5", status=status))).finished


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        head("Content-Length: 5", "Transfer-Encoding: chunked"),
        head("Content-Length: 5", "Content-Length: 5"),
        head("Content-Length: 5", "Content-Length: 6"),
        head("Content-Length: 5, 5"),
        head("Content-Length: +5"),
        head("Content-Length: 0x5"),
        head("Content-Length: " + "9" * 30),
        head("Transfer-Encoding: gzip, chunked"),
        head("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
        head("Transfer-Encoding: identity"),
        head("Name : value"),
        head(" folded"),
        b"HTTP/1.1 200 OK\nName: value\r\n\r\n",
        head("Upgrade: x", "Connection: upgrade", status="HTTP/1.1 101 Switching Protocols"),
        head(status="HTTP/1.1 101 Switching Protocols"),
        head(status="HTTP/1.1 99 No"),
        head(status="HTTP/1.1 abc"),
    ],
)
def test_a_head_that_two_readers_could_take_differently_is_refused(data: bytes) -> None:
    with pytest.raises(BadHead):
        body_reader(parse_head(data))


@pytest.mark.parametrize("status", [100, 102, 103])
def test_interim_answers_are_known_as_such(status: int) -> None:
    assert parse_head(head(status=f"HTTP/1.1 {status} Wait")).is_interim


@pytest.mark.parametrize(
    ("status", "kind", "is_stream"),
    [
        (200, "text/event-stream; charset=utf-8", True),
        (200, "text/event-stream", True),
        (200, "application/json", False),
        (400, "text/event-stream", False),
    ],
)
def test_only_a_200_of_events_is_a_stream(status: int, kind: str, is_stream: bool) -> None:
    assert parse_head(head(f"Content-Type: {kind}", status=f"HTTP/1.1 {status} X")).is_event_stream == is_stream
