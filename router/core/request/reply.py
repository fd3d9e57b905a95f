"""A worker's reply, how its status is judged, and how its stream ended."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """A whole reply, or the head of a stream whose first event has come. A stream's ``body`` is empty: the splice sends it."""

    status: int
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    content: bytes | tuple[bytes, ...]
    """A large body is kept in pieces, as it came."""
    is_stream: bool

    @property
    def body(self) -> bytes:
        """The whole body. For a large one it is a copy, so keep it briefly."""
        return self.content if isinstance(self.content, bytes) else b"".join(self.content)

    @property
    def pieces(self) -> tuple[bytes, ...]:
        return (self.content,) if isinstance(self.content, bytes) else self.content


class Verdict(Enum):
    """Whose fault a status is."""

    ANSWER = 0
    """Nobody's, or the client's: a success, or an error in its request."""
    BUSY = 1
    """Nobody's: the worker has no room, and is well."""
    FAILED = 2
    """The worker's."""


def judge(status: int) -> Verdict:
    """``status``: of a whole reply, or named in a stream's error event. A redirect is a failure, since workers do not redirect.
    So are 401 and 403: the worker refuses the router's key, not the client's."""
    if status < 300:
        return Verdict.ANSWER
    if status in (429, 503):
        return Verdict.BUSY
    return Verdict.FAILED if status >= 500 or status < 400 or status in (401, 403) else Verdict.ANSWER


class StreamEnd(Enum):
    """How the relay of a stream ended; the value is the record's outcome."""

    DONE = "ok"
    DIED = "broken"
    SILENT = "silent"
    SLOW = "slow"
    """The worker was silent for too long, although it is at work."""
    ERRED = "errored"
    TOO_LARGE = "too_large"
    CLIENT_GONE = "client_gone"
    CLIENT_STALLED = "client_stalled"
