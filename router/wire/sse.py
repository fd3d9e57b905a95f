"""Follows a stream of server-sent events on its way to the client. Pure.

A stream is good if an event gave a reason for finishing *and* the closing event came: a dying engine sends the closing event
alone.
"""

from __future__ import annotations

import re
from typing import Protocol

from router.wire.dialects import Dialect
from router.wire.events import ANY_IDS, LARGE_EVENT_BYTES, cut_ids, each_event, is_costly, is_object, is_sound_with
from router.wire.framing import frame
from router.wire.transcript import Transcript
from router.wire.usage import Usage, read_event_usage

MAX_EMPTY_EVENTS = 10_000
"""Most events without data in a row, such as comments. A keep-alive comes once in several seconds."""

MAX_LAST_BYTES = 8 << 20
"""Most bytes of events that wait for the hidden usage event."""

MAX_BARE_BYTES = 4 << 20
"""Most bytes of an event without its ids: a chunk of text, or a whole prompt that is echoed."""

_PLAIN_BEGIN = re.compile(rb"event: (?:content_block_(?:start|delta|stop)|ping)\ndata: \{")
"""The beginning of a named event that does not begin, end or fail a stream."""

_FINGERPRINT = re.compile(rb'"system_fingerprint": ?"[^"\\]*"')


class Filter(Protocol):
    """Reads a stream's events, and gives those that the client gets."""

    @property
    def closed(self) -> bool:
        """The closing event came."""
        ...

    @property
    def failed(self) -> bool: ...

    @property
    def error(self) -> bytes:
        """The worker's error event; empty if there was none."""
        ...

    def is_plain(self, data: bytes) -> bool:
        """True if ``data``, whole frames of whole events, needs no ``take``."""
        ...

    def pass_frame(self, data: bytes, at: int) -> bytes:
        """One plain frame as the client gets it. Its payload begins at ``at``."""
        ...

    def take(self, events: bytes) -> bytes:
        """Takes whole events; returns the client's."""
        ...


class StreamFilter:
    """Follows one stream. ``is_plain`` is a fast check of every read, and ``take`` the full one.

    ``transcript`` keeps what the client got, for a worker that continues the stream; None: the stream is not resumable.
    """

    __slots__ = (
        *(
            "_empty",
            "_last",
            "_event_bytes",
            "_least_bytes",
            "_last_bytes",
            "closed",
            "dialect",
            "error",
            "events",
            "failed",
            "finished",
            "hides_ids",
            "hides_usage",
            "transcript",
            "usage",
        ),
    )

    def __init__(
        self, dialect: Dialect, *, hides_usage: bool, hides_ids: bool = False, transcript: Transcript | None = None
    ) -> None:
        self.dialect = dialect
        self.hides_usage = hides_usage
        self.hides_ids = hides_ids
        self.transcript = transcript
        self.finished = False
        """A reason for finishing was given."""
        self.closed = False
        """The closing event came, and something had finished before it."""
        self.error = b""
        """The worker's error event; empty if there was none."""
        self.failed = False
        """The worker sent an error event, or closed without a reason for finishing."""
        self.usage: Usage | None = None
        self.events = 0
        self._event_bytes = 0
        self._least_bytes = 1 << 30
        """Bytes of all events and of the shortest, which estimates the overhead of each."""
        self._empty = 0
        """Events without data since the last event with data."""
        self._last_bytes = 0
        self._last: list[bytes] = []
        """Events with a reason for finishing. They wait for the hidden usage event, whose fingerprint may belong to them."""

    def __repr__(self) -> str:
        state = "failed" if self.failed else "closed" if self.closed else "finished" if self.finished else "open"
        return f"StreamFilter({state}, {self.events} events)"

    def is_plain(self, data: bytes) -> bool:
        """True for one sound event that changes no state. The searches cost 0.5 µs for a chunk, and the check for JSON half as
        much."""
        begin = data.find(b"\n") + 7
        if not data.startswith(b"data: {", begin - 6):
            if (named := _PLAIN_BEGIN.match(data, begin - 6)) is None:
                return False
            begin = named.end() - 1
        if data.find(b"\n", begin) != len(data) - 4 or not is_object(data[begin:-4]):
            return False
        # rfind takes the interpreter half as long as find.
        return (
            data.rfind(b'_reason":"') < 0
            and data.rfind(b'_reason": "') < 0
            and data.rfind(b'"choices":[]') < 0
            and data.rfind(b'"choices": []') < 0
            and data.rfind(b'"error"') < 0
        )

    def pass_frame(self, data: bytes, at: int) -> bytes:
        """One frame of the chunked coding, as the client gets it. Its payload, from ``at`` on, is plain whole events."""
        self._empty = 0
        if self.transcript is not None:
            self.transcript.keep(data)
        self._count(len(data))
        if not self.hides_ids or (begin := data.rfind(ANY_IDS, at)) < 0:
            return data
        begin -= 2
        end = data.find(b"]", begin) + 1  # 0 if nothing closes it, which cut_ids handles
        if not end or data[begin : begin + 2] != b',"' or data.rfind(ANY_IDS, at, begin) >= 0:
            return frame(cut_ids(data[at:-2]))
        payload = data[at:begin] + data[end:-2]
        return b"%x\r\n%b\r\n" % (len(payload), payload)

    def take(self, events: bytes) -> bytes:
        """Takes whole events; returns those that the client may see. It returns nothing after a failure or the closing
        event."""
        seen: list[bytes] = []
        for event in each_event(events):
            if self.failed or self.closed:
                break
            if len(event) > LARGE_EVENT_BYTES and is_costly(event):  # also for cut_ids
                self.failed = True
                break
            self._empty = 0 if b"data:" in event else self._empty + 1
            bare = cut_ids(event)
            if self._empty > MAX_EMPTY_EVENTS or len(bare) > MAX_BARE_BYTES or not is_sound_with(event, bare):
                self.failed = True
                break
            if self.transcript is not None:
                self.transcript.keep(event)
            self._count(len(bare))
            seen += self._take_one(bare if self.hides_ids else event)
        return b"".join(seen)

    def tokens(self, bytes_per_token: float) -> float:
        """Tokens of the answer so far. Once the answer is whole, the worker's count; else its ids; else one token for each
        event, and more for events longer than the shortest: workers put several tokens into one event when the client reads
        slowly. The worker's count is ignored before the end, since the first event of a message has a count of the answer,
        too."""
        if self.usage is not None and self.finished and self.usage.output_tokens:
            return self.usage.output_tokens
        if self.transcript is not None and (ids := self.transcript.count_ids()):
            return ids
        return self.events + max(0, self._event_bytes - self.events * self._least_bytes) / bytes_per_token

    def _count(self, event_bytes: int) -> None:
        self.events += 1
        self._event_bytes += event_bytes
        if event_bytes < self._least_bytes:
            self._least_bytes = event_bytes

    def rest(self) -> bytes:
        """For a stream that broke after its reason for finishing: the events that still belong to it, except the usage."""
        return b"".join(self._give_last())

    def _take_one(self, event: bytes) -> list[bytes]:
        """The events that the client gets for this one."""
        dialect = self.dialect
        if dialect.failed.is_in(event):
            self.failed = True
            self.error = event
            return []
        if dialect.finished.is_in(event):
            self.finished = True
            if self.hides_usage:
                self._last.append(event)
                self._last_bytes += len(event)
                self.failed = self._last_bytes > MAX_LAST_BYTES
                return []
        if dialect.closing.is_in(event):
            self.closed = self.finished
            self.failed = not self.finished
            return [*self._give_last(), event] if self.closed else []
        if dialect.usage.is_in(event):
            self._take_usage(event)
            if self.hides_usage:
                self._last = [_with_fingerprint(last, event) for last in self._last]
                return self._give_last()
        return [event]

    def _give_last(self) -> list[bytes]:
        last, self._last, self._last_bytes = self._last, [], 0
        return last

    def _take_usage(self, event: bytes) -> None:
        usage = read_event_usage(event)
        if usage is None:
            return
        before = self.usage
        if before is not None and usage.cached_tokens is None:
            usage = Usage(
                before.prompt_tokens, before.cached_tokens, usage.output_tokens
            )  # a later event that only counts the output
        self.usage = usage


def _with_fingerprint(event: bytes, usage_event: bytes) -> bytes:
    """vLLM names its configuration in the stream's last event with a body. If that event is hidden, the name moves to the event
    before it, where a client that asked for no usage would have found it."""
    name = _FINGERPRINT.search(usage_event)
    if name is None or _FINGERPRINT.search(event):
        return event
    end = event.rfind(b"}")
    return b"%b,%b%b" % (event[:end], name[0], event[end:]) if end >= 0 else event
