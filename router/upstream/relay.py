"""Relays a stream's events to one client, in the same turn of the loop in which they are read.

A read that is one frame with one plain event leaves as it came, without a copy. Anything else is cut into whole events, and
leaves in a frame of our own. The client never gets a part of an event, nor the worker's own last chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from router.proxy.ports import Client
from router.upstream.reply_reader import ReplyReader
from router.wire.framing import CHUNK_SIZE, LAST_CHUNK, frame
from router.wire.sse import Filter


class RelayEvent(Enum):
    """Why a stream needs its owner: it is complete, it failed, the client is gone, or the client reads too slowly."""

    DONE = 0
    FAILED = 1
    CLIENT_GONE = 2
    FULL = 3


class Relay:
    """One stream's way to one client. ``observe_gap`` is called with the seconds between two reads."""

    __slots__ = ("_client", "_filter", "_reader", "observe_gap", "reads")

    def __init__(
        self, client: Client, stream_filter: Filter, reader: ReplyReader, observe_gap: Callable[[float], None]
    ) -> None:
        self._client = client
        self._filter = stream_filter
        self._reader = reader
        self.observe_gap = observe_gap
        self.reads = 0
        """Reads from the worker since the relay began."""

    def plain_frame(self, data: bytes) -> bytes:
        """A read that is one frame of whole plain events, as the client gets it; empty where ``data`` needs ``send``."""
        reader, stream_filter = self._reader, self._filter
        if (
            data.endswith(b"\n\n\r\n")
            and not reader.held
            and reader.body.at_boundary
            and stream_filter.is_plain(data)
            and (size := CHUNK_SIZE.match(data)) is not None
            and size.end() + int(size[1], 16) + 2 == len(data)
            and self._client.is_chunked
        ):
            return stream_filter.pass_frame(data, size.end())
        return b""

    def write(self, out: bytes, *, is_last: bool = False) -> RelayEvent | None:
        """Returns None while the client can take more."""
        client = self._client
        if client.is_closing():
            return RelayEvent.CLIENT_GONE
        if is_last:
            client.write_last(out)
            return RelayEvent.DONE
        client.write(out)
        return RelayEvent.FULL if client.is_full() else None

    def send(self, events: bytes, head: bytes = b"") -> RelayEvent | None:
        """Write ``head`` and events that passed the filter in one call, and the end of the body with the closing event."""
        is_chunked, is_last = self._client.is_chunked, self._filter.closed
        out = head
        if events:
            out += frame(events) if is_chunked else events
        if is_last and is_chunked:
            out += LAST_CHUNK
        event = self.write(out, is_last=is_last) if out or is_last else None
        return RelayEvent.FAILED if self._filter.failed and event is not RelayEvent.CLIENT_GONE else event
