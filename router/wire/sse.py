"""Streams of server-sent events as the three streaming routes use them: what ends one, what fails one, what it counted.

A stream is good when an event gave a reason for finishing *and* the closing event came: a dying engine sends the latter
alone. Marks are searched as bytes, since parsing each event would cost more than all else that is done for it. They cannot
appear inside text: there, every quotation mark is escaped.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec

from router.core.request.routes import Api, Route
from router.wire.framing import frame
from router.wire.transcript import PROMPT_IDS, Transcript


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the worker counted them; ``cached_tokens`` is None when it did not say."""

    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int


class Mark:
    """Bytes of which an event has one: anywhere in it, or at the beginning of a line. Plain searches, since an event may have
    megabytes, through which a pattern would take ten times as long."""

    __slots__ = ("_begins", "_texts")

    def __init__(self, *texts: bytes, begins_line: bool = False) -> None:
        self._texts = () if begins_line else texts
        self._begins = texts if begins_line else ()

    def is_in(self, event: bytes) -> bool:
        for text in self._texts:  # a generator would take twice as long
            if text in event:
                return True
        return bool(self._begins) and self._begins_a_line(event)

    def _begins_a_line(self, event: bytes) -> bool:
        """Events have few lines: to find them is ten times faster than to search the marks in megabytes."""
        at = 0
        while not event.startswith(self._begins, at):
            at = event.find(b"\n", at) + 1
            if not at:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one route's stream speaks. Every mark is searched in whole events."""

    closing: Mark
    finished: Mark
    failed: Mark
    usage: Mark
    closing_event: bytes
    error_event: bytes
    """``%b`` takes the error's JSON."""


_OPENAI = Dialect(
    closing=Mark(b"data: [DONE]", b"data:[DONE]", begins_line=True),
    finished=Mark(b'"finish_reason":"', b'"finish_reason": "'),
    failed=Mark(b'data: {"error":', b'data:{"error":', begins_line=True),
    usage=Mark(b'"choices":[]', b'"choices": []'),
    closing_event=b"data: [DONE]\n\n",
    error_event=b"data: %b\n\n",
)
_ANTHROPIC = Dialect(
    closing=Mark(b"event: message_stop", b"event:message_stop", begins_line=True),
    finished=Mark(b'"stop_reason":"', b'"stop_reason": "'),
    failed=Mark(  # the latter two where the engine below it died
        b"event: error", b"event:error", b'data: {"error":', b'data:{"error":', begins_line=True
    ),
    usage=Mark(b'"usage":{', b'"usage": {'),
    closing_event=b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    error_event=b"event: error\ndata: %b\n\n",
)
_DIALECTS = {Api.OPENAI: _OPENAI, Api.ANTHROPIC: _ANTHROPIC}
DIALECTS = {route: _DIALECTS[route.spec.streams] for route in Route if route.spec.streams}

MAX_EMPTY_EVENTS = 10_000
"""Comments and other events without data that may follow one another. A keep-alive comes once in seconds."""

MAX_LINES = 64
"""Of one event. Workers write one or two."""

LARGE_EVENT_BYTES, MAX_CONTAINERS = 64 << 10, 100_000
"""A large event has so many brackets at most: decoded, each is some 200 bytes."""

MAX_LAST_BYTES = 8 << 20
"""Of events that wait for the hidden usage event."""

_DIED_WITHIN_BYTES = 64 << 10

_PLAIN_BEGIN = re.compile(rb"event: (?:content_block_(?:start|delta|stop)|ping)\ndata: \{")
"""How a named event begins that is none of those which begin, end or fail a stream."""

_ERROR_CODE = re.compile(rb'"code": ?([45]\d\d)\b')
_ENGINE_DIED = (b"EngineCore encountered an issue", b"EngineDeadError")
_FINGERPRINT = re.compile(rb'"system_fingerprint": ?"[^"\\]*"')
_IDS, _NO_PROMPT_TEXT = b',"token_ids":[', b',"prompt_text":null'
_NUMBERS = b"0123456789, "
MAX_BARE_BYTES = 4 << 20
"""Of an event without its ids: a chunk of text, or a whole prompt that is echoed."""
_ANY_IDS = b'token_ids":['
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Counts(msgspec.Struct):
    """Both dialects' ``usage``."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None


class _Message(msgspec.Struct):
    usage: _Counts | None = None


class _Counted(msgspec.Struct):
    """What has its usage among its own members, or in the message that it begins; whatever else it has is not looked at."""

    usage: _Counts | None = None
    message: _Message | None = None


_counted = msgspec.json.Decoder(_Counted)


def read_usage(body: bytes) -> Usage | None:
    """Of a whole reply: its own member, wherever text of it may say so, too. None where it has none, or none that can be true.
    Linear: 1 µs for 2 kB."""
    try:
        found = _counted.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    counts = found.usage or (found.message.usage if found.message else None)
    if counts is None:
        return None
    if counts.prompt_tokens is not None:
        cached = counts.prompt_tokens_details.cached_tokens if counts.prompt_tokens_details else None
        return Usage(counts.prompt_tokens, cached, counts.completion_tokens or 0)
    if counts.input_tokens is None and counts.output_tokens is None:
        return None
    # Anthropic counts apart what was read from the cache, what was put there, and the rest; a stream's end the answer alone.
    read = counts.cache_read_input_tokens
    prompt_tokens = (counts.input_tokens or 0) + (read or 0) + (counts.cache_creation_input_tokens or 0)
    return Usage(prompt_tokens, read, counts.output_tokens or 0)


def read_event_usage(event: bytes) -> Usage | None:
    """Likewise, of an event: of the JSON that is its data."""
    begin = event.find(b"data:")
    return read_usage(event[begin + 5 :].split(b"\n", 1)[0]) if begin >= 0 else None


def _with_fingerprint(event: bytes, usage_event: bytes) -> bytes:
    """vLLM names its configuration in the stream's last event with a body. Where that one is hidden, the name moves to
    the one before, which is where a client that asked for no usage would have found it."""
    name = _FINGERPRINT.search(usage_event)
    if name is None or _FINGERPRINT.search(event):
        return event
    end = event.rfind(b"}")
    return b"%b,%b%b" % (event[:end], name[0], event[end:]) if end >= 0 else event


def read_error(event: bytes) -> tuple[int, bytes]:
    """Status and JSON of an error event: 400 to 599 if it names one, else 500. vLLM answers so what it finds wrong only
    once it has begun."""
    body = event[event.find(b"data:") + 5 :].strip()
    code = _ERROR_CODE.search(body)
    return int(code[1]) if code else 500, body


def says_engine_died(text: bytes) -> bool:
    """An answer or an error event of vLLM's front end, which outlives its engine by some seconds."""
    begin = text[:_DIED_WITHIN_BYTES]
    return any(mark in begin for mark in _ENGINE_DIED)


def take_events(held: bytearray, payload: bytes) -> bytes:
    """The events that are whole with ``payload``. ``held`` keeps what is not one yet; each byte is searched once."""
    if not held:
        end = _end_of_events(payload, 0)
        if end == len(payload):
            return payload
        held += memoryview(payload)[end:]
        return payload[:end]
    searched = max(len(held) - 2, 0)
    held += payload
    end = _end_of_events(held, searched)
    with memoryview(held) as view:
        whole = bytes(view[:end])
    del held[:end]
    return whole


def _end_of_events(text: bytes | bytearray, searched: int) -> int:
    """Where the last whole event ends; 0 where none does behind ``searched``."""
    end = max(text.rfind(b"\n\n", searched) + 2, text.rfind(b"\n\r\n", searched) + 3)
    return end if end > 2 else 0


class _Anything(msgspec.Struct):
    """A JSON object, none of whose members matters."""


_object = msgspec.json.Decoder(_Anything)
_utf8 = codecs.getincrementaldecoder("utf-8")


def is_costly(event: bytes) -> bool:
    """True where to read it would cost far more than its bytes: very many lines, or brackets."""
    if len(event) < 2 * MAX_LINES:
        return False
    if _has_more(event, b"\n", b"\r", 2 * MAX_LINES):
        return True
    return len(event) > LARGE_EVENT_BYTES and _has_more(event, b"[", b"{", MAX_CONTAINERS)


def _has_more(event: bytes, one: bytes, other: bytes, most: int) -> bool:
    """Of both together. In windows: few are found fast, and of many not all are counted."""
    found = 0
    for at in range(0, len(event), LARGE_EVENT_BYTES):
        end = at + LARGE_EVENT_BYTES
        found += event.count(one, at, end) + event.count(other, at, end)
        if found > most:
            return True
    return False


def is_sound(event: bytes) -> bool:
    """True for what every client can parse: JSON objects in UTF-8, the closing word, and comments. Vendors' clients raise on
    anything else what no caller of theirs expects."""
    return not is_costly(event) and _can_be_parsed(event)


def _can_be_parsed(event: bytes) -> bool:
    data = None
    for line in event.splitlines() if b"\r" in event else event.split(b"\n"):
        if line.startswith(b"data:"):
            data = line[5:] if data is None else data + b"\n" + line[5:]
        elif line and data is None and not line.startswith((b":", b"event:", b"id:")):
            return False
    if data is None:
        return not event.strip() or event.startswith(b":")
    return _is_object(data) or data.strip() == b"[DONE]"


def _is_object(data: bytes) -> bool:
    """0.3 µs for a chunk's: a look at structure and text without making anything of either."""
    try:
        _object.decode(data)
        if not data.isascii():
            _require_utf8(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _require_utf8(data: bytes) -> None:
    """In pieces, since nothing is to be kept of it: a text of megabytes takes four times as long. Raises UnicodeDecodeError."""
    if len(data) <= LARGE_EVENT_BYTES:
        data.decode()
        return
    decode = _utf8().decode
    for at in range(0, len(data), LARGE_EVENT_BYTES):
        decode(data[at : at + LARGE_EVENT_BYTES])
    decode(b"", final=True)


def each_event(events: bytes) -> Iterator[bytes]:
    """Whole events one by one, each with the blank line that ends it. A prompt's ids are megabytes, so nothing scans slowly."""
    at = 0
    while at < len(events):
        behind = _end_of_event(events, at)
        yield events[at:behind]
        at = behind


def _end_of_event(events: bytes, at: int) -> int:
    """By its line ends, which are found faster than blank lines. One of more lines than are read is all that is left."""
    for _ in range(2 * MAX_LINES + 2):
        if (at := events.find(b"\n", at) + 1) == 0:
            break
        if events.startswith(b"\n", at):
            return at + 1
        if events.startswith(b"\r\n", at):
            return at + 2
    return len(events)


def cut_ids(event: bytes) -> bytes:
    """An event without the token ids that the router asked for. They are arrays of numbers, so the next bracket ends them,
    and their names cannot appear inside text, where every quotation mark is escaped."""
    for mark in (PROMPT_IDS, _IDS):
        kept, at = [], 0
        while (begin := event.find(mark, at)) >= 0 and (end := event.find(b"]", begin)) >= 0:
            kept.append(event[at:begin])
            at = end + 1
        if kept:
            event = b"".join((*kept, event[at:]))
            if mark is PROMPT_IDS:
                event = event.replace(_NO_PROMPT_TEXT, b"", len(kept))
    return event


def _is_sound_with(event: bytes, bare: bytes) -> bool:
    """``bare``: the event without its ids, of which there may be megabytes: those need only be numbers. A large event was
    found not to be costly before."""
    if len(event) <= LARGE_EVENT_BYTES:
        return is_sound(event)
    return _can_be_parsed(bare) and all(not ids.translate(None, _NUMBERS) for ids in _each_ids(event))


def _each_ids(event: bytes) -> Iterator[bytes]:
    at = 0
    while (begin := event.find(_ANY_IDS, at)) >= 0 and (end := event.find(b"]", begin)) >= 0:
        yield event[begin + len(_ANY_IDS) : end]
        at = end


class Filter(Protocol):
    """What follows a stream's events, and makes of them what the client gets."""

    @property
    def closed(self) -> bool:
        """The closing event came."""
        ...

    @property
    def failed(self) -> bool: ...

    @property
    def error(self) -> bytes:
        """The event by which the worker said that it failed, if it did."""
        ...

    def is_plain(self, data: bytes) -> bool:
        """True where whole frames of whole events need no ``take``."""
        ...

    def pass_frame(self, data: bytes, at: int) -> bytes:
        """One plain frame, whose payload begins at ``at``, as the client gets it."""
        ...

    def take(self, events: bytes) -> bytes:
        """Whole events in, the client's out."""
        ...


class StreamFilter:
    """Follows one stream. ``is_plain`` is the fast question, asked of every read; ``take`` the full one.

    ``transcript`` keeps what the client is sent, for whoever goes on with it; None where nobody will.
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
        """The event by which the worker said so; empty where there was none."""
        self.failed = False
        """The worker sent an error event, or closed without a reason for finishing."""
        self.usage: Usage | None = None
        self.events = 0
        self._event_bytes = 0
        self._least_bytes = 1 << 30
        """Of all events, and of the shortest, which says what is in each beside its text."""
        self._empty = 0
        """Events without data since the last one that had some."""
        self._last_bytes = 0
        self._last: list[bytes] = []
        """Events that gave a reason for finishing, until the hidden usage event after them has told what belongs there."""

    def is_plain(self, data: bytes) -> bool:
        """True where nothing in ``data`` needs ``take``: one sound event, without anything remarkable. Its searches cost
        0.5 µs for a chunk, and to look whether it is JSON half as much."""
        begin = data.find(b"\n") + 7
        if not data.startswith(b"data: {", begin - 6):
            if (named := _PLAIN_BEGIN.match(data, begin - 6)) is None:
                return False
            begin = named.end() - 1
        if data.find(b"\n", begin) != len(data) - 4 or not _is_object(data[begin:-4]):
            return False
        # From behind, since that takes the interpreter half as long.
        return (
            data.rfind(b'_reason":"') < 0
            and data.rfind(b'_reason": "') < 0
            and data.rfind(b'"choices":[]') < 0
            and data.rfind(b'"choices": []') < 0
            and data.rfind(b'"error"') < 0
        )

    def pass_frame(self, data: bytes, at: int) -> bytes:
        """One frame of the chunked coding whose payload, from ``at`` on, is plain whole events: as the client gets it."""
        self._empty = 0
        if self.transcript is not None:
            self.transcript.keep(data)
        self._count(len(data))
        if not self.hides_ids or (begin := data.rfind(_ANY_IDS, at)) < 0:
            return data
        begin -= 2
        end = data.find(b"]", begin) + 1  # 0 where nothing closes it, which the full way can bear
        if not end or data[begin : begin + 2] != b',"' or data.rfind(_ANY_IDS, at, begin) >= 0:
            return frame(cut_ids(data[at:-2]))
        payload = data[at:begin] + data[end:-2]
        return b"%x\r\n%b\r\n" % (len(payload), payload)

    def take(self, events: bytes) -> bytes:
        """Whole events in; out come those that the client may see. Nothing is given from a failure or the closing event
        on."""
        seen: list[bytes] = []
        for event in each_event(events):
            if self.failed or self.closed:
                break
            if len(event) > LARGE_EVENT_BYTES and is_costly(event):  # to cut ids off it, too
                self.failed = True
                break
            self._empty = 0 if b"data:" in event else self._empty + 1
            bare = cut_ids(event)
            if self._empty > MAX_EMPTY_EVENTS or len(bare) > MAX_BARE_BYTES or not _is_sound_with(event, bare):
                self.failed = True
                break
            if self.transcript is not None:
                self.transcript.keep(event)
            self._count(len(bare))
            seen += self._take_one(bare if self.hides_ids else event)
        return b"".join(seen)

    def tokens(self, bytes_per_token: float) -> float:
        """Of the answer so far: as the worker counted, once the answer is whole; else by its ids; else a token for each event,
        and more for those that are longer than the shortest. Workers put several tokens into one event when nobody reads. The
        first event of a message counts the answer, too, before there is any."""
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
        """What still belongs to a stream that was broken after its reason for finishing, but for its usage."""
        return b"".join(self._give_last())

    def _take_one(self, event: bytes) -> list[bytes]:
        """What the client sees at this event."""
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
