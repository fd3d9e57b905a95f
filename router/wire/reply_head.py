"""The head of a worker's reply. Framing is decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import httptools

from router.wire.framing import BodyReader, ChunkedReader, LengthReader, UntilClosed

MAX_HEAD_BYTES = 32 << 10
_MAX_LENGTH_DIGITS = 15


class BadHead(Exception):
    """Not an HTTP/1 response head, or one whose framing is not certain."""


class _Callbacks:
    """Callbacks of httptools. Setting a dictionary's item directly saves a Python call for each header."""

    __slots__ = ("on_header",)

    def __init__(self, on_header: Callable[[bytes, bytes], None]) -> None:
        self.on_header = on_header


class ReplyHead:
    """``headers``: names in lower case; of repeated ones the last counts."""

    __slots__ = ("headers", "keeps_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.keeps_alive = False

    @property
    def is_interim(self) -> bool:
        return 100 <= self.status < 200

    @property
    def is_event_stream(self) -> bool:
        return self.status == 200 and self.headers.get(b"content-type", b"").startswith(b"text/event-stream")


def parse_head(data: bytes) -> ReplyHead:
    """``data`` ends with the head's blank line. Raises BadHead; httptools refuses two lengths, and a length with chunks."""
    if len(data) > MAX_HEAD_BYTES:
        raise BadHead("too long")
    head = ReplyHead()
    given: dict[bytes, bytes] = {}
    parser = httptools.HttpResponseParser(_Callbacks(given.__setitem__))
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise BadHead(str(error)) from None
    head.headers = {name.lower(): value for name, value in given.items()}
    if b"transfer-encoding" in head.headers and data.lower().count(b"\r\ntransfer-encoding:") > 1:
        raise BadHead("several transfer codings")
    head.status = parser.get_status_code()
    if not 100 <= head.status <= 599:
        raise BadHead("no such status")
    connection = head.headers.get(b"connection", b"").lower()
    # RFC 9112, section 9.3. The parser's own answer is no use: after an empty body it has forgotten the head.
    head.keeps_alive = b"close" not in connection and (
        parser.get_http_version() == "1.1" or b"keep-alive" in connection
    )
    return head


def body_reader(head: ReplyHead) -> BodyReader:
    """Raises BadHead."""
    coding = head.headers.get(b"transfer-encoding")
    length = head.headers.get(b"content-length")
    if head.status in (204, 304):
        return LengthReader(0)
    if coding is not None:
        if coding.strip().lower() != b"chunked":
            raise BadHead("unknown transfer coding")
        return ChunkedReader()
    if length is not None:
        if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
            raise BadHead("bad content length")
        return LengthReader(int(length))
    return UntilClosed()
