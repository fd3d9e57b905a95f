"""Where the body of a worker's reply ends: by chunks, by a length, or with the connection.

Chunks are read strictly: a size that two readers could read differently is an error, and never reaches a client.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Protocol

CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
"""Only up to 8 hexadecimal digits: ``int(x, 16)`` alone would also accept ``+5``, ``0x5`` and ``1_0``."""

_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;.*)?")
_MAX_LINE_BYTES = 1024
MAX_TRAILER_BYTES = 16 << 10
MANY_CHUNKS, MIN_MEAN_CHUNK_BYTES = 4096, 16
"""A body of more chunks must have this mean size of a chunk: each chunk costs as much as reading 1,000 bytes."""

LAST_CHUNK = b"0\r\n\r\n"


class BadFraming(Exception):
    """The worker's bytes are not a chunked body. The connection must never be used again."""


def frame(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class _Expect(Enum):
    SIZE = 0
    PAYLOAD = 1
    PAYLOAD_END = 2
    TRAILER = 3


class BodyReader(Protocol):
    """Takes bytes, however they are cut, and returns payload."""

    @property
    def finished(self) -> bool: ...

    @property
    def surplus(self) -> bytes:
        """Bytes after the body's end: a reply to no request."""
        ...

    @property
    def at_boundary(self) -> bool:
        """True between two chunks: a size line comes next."""
        ...

    def feed(self, data: bytes) -> tuple[bytes, BadFraming | None]:
        """The payload in ``data``, and the error after it, if any."""
        ...


class UntilClosed:
    """A body that ends with its connection."""

    __slots__ = ()
    finished = False
    surplus = b""
    at_boundary = False

    def feed(self, data: bytes) -> tuple[bytes, BadFraming | None]:
        return data, None


class LengthReader:
    """A body with a Content-Length."""

    __slots__ = ("_left", "finished", "surplus")
    at_boundary = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.finished = length == 0
        self.surplus = b""

    def feed(self, data: bytes) -> tuple[bytes, BadFraming | None]:
        payload = data if len(data) <= self._left else data[: self._left]
        self.surplus = data[len(payload) :]
        self._left -= len(payload)
        self.finished = not self._left
        return payload, None


class ChunkedReader:
    """A chunked body; trailers are read and dropped."""

    __slots__ = ("_chunks", "_expect", "_left", "_line", "_payload_bytes", "_trailer_bytes", "finished", "surplus")

    def __init__(self) -> None:
        self._chunks = self._payload_bytes = self._trailer_bytes = 0
        self._expect = _Expect.SIZE
        self._left = 0
        self._line = b""
        self.finished = False
        self.surplus = b""

    @property
    def at_boundary(self) -> bool:
        return self._expect is _Expect.SIZE and not self._line

    def feed(self, data: bytes) -> tuple[bytes, BadFraming | None]:
        pieces: list[bytes] = []
        try:
            self._walk(self._line + data, pieces)
        except BadFraming as error:
            return b"".join(pieces), error
        return b"".join(pieces), None

    def _walk(self, data: bytes, pieces: list[bytes]) -> None:
        self._line = b""
        at, end = 0, len(data)
        while at < end and not self.finished:
            if self._expect is _Expect.PAYLOAD:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._expect = _Expect.PAYLOAD_END
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._line = self._begun(data[at:])
                return
            self._take_line(data[at:line_end])
            at = line_end + 2
        self.surplus = data[at:]

    def _take_line(self, line: bytes) -> None:
        if self._expect is _Expect.TRAILER:
            self._trailer_bytes += len(line) + 2
            if b"\n" in line or len(line) > _MAX_LINE_BYTES or self._trailer_bytes > MAX_TRAILER_BYTES:
                raise BadFraming("bad trailer")
            self.finished = not line
        elif self._expect is _Expect.PAYLOAD_END:
            if line:
                raise BadFraming("no line end after a chunk")
            self._expect = _Expect.SIZE
        else:
            match = _SIZE_LINE.fullmatch(line)
            if match is None or len(line) > _MAX_LINE_BYTES:
                raise BadFraming("bad chunk size")
            self._left = int(match[1], 16)
            self._expect = _Expect.PAYLOAD if self._left else _Expect.TRAILER
            self._chunks += self._left > 0
            self._payload_bytes += self._left
            if self._chunks > MANY_CHUNKS and self._payload_bytes < self._chunks * MIN_MEAN_CHUNK_BYTES:
                raise BadFraming("too many tiny chunks")

    def _begun(self, line: bytes) -> bytes:
        """A line that is not whole yet, if it may still become one."""
        is_end = self._expect is _Expect.PAYLOAD_END
        if b"\n" in line or len(line) > _MAX_LINE_BYTES or (is_end and line != b"\r"):
            raise BadFraming("bad line between chunks")
        return line
