"""What a worker answered, and how a stream of it ended."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """A whole reply, or the head of a stream whose first event is here: then ``body`` is empty and the splice sends it."""

    status: int
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    content: bytes | tuple[bytes, ...]
    """A large body is kept in the pieces that it came in."""
    is_stream: bool

    @property
    def body(self) -> bytes:
        """All of it; of a large one a copy, to be let go soon."""
        return self.content if isinstance(self.content, bytes) else b"".join(self.content)

    @property
    def pieces(self) -> tuple[bytes, ...]:
        return (self.content,) if isinstance(self.content, bytes) else self.content


class Verdict(Enum):
    """Whose affair a status is."""

    ANSWER = 0
    """The client's: what it asked for, or that its request is wrong."""
    BUSY = 1
    """The worker has no room for it, and is well."""
    FAILED = 2
    """The worker's."""


def judge(status: int) -> Verdict:
    """Of a whole reply, or named in a stream's error event. A redirect is a failure, for a worker that sends its clients
    elsewhere is none, and so are 401 and 403: the worker refuses the router's key, not the client's."""
    if status < 300:
        return Verdict.ANSWER
    if status in (429, 503):
        return Verdict.BUSY
    return Verdict.FAILED if status >= 500 or status < 400 or status in (401, 403) else Verdict.ANSWER


class StreamEnd(Enum):
    """How a stream's relay ended; the value is the record's outcome."""

    DONE = "ok"
    DIED = "broken"
    SILENT = "silent"
    SLOW = "slow"
    """Silent for too long, of a worker that is at work."""
    ERRED = "errored"
    TOO_LARGE = "too_large"
    CLIENT_GONE = "client_gone"
    CLIENT_STALLED = "client_stalled"
