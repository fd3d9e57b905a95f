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
    body: bytes
    is_stream: bool


class StreamEnd(Enum):
    """How a stream's relay ended; the value is the record's outcome."""

    DONE = "ok"
    DIED = "broken"
    SILENT = "silent"
    ERRED = "errored"
    TOO_LARGE = "too_large"
    CLIENT_GONE = "client_gone"
    CLIENT_STALLED = "client_stalled"
