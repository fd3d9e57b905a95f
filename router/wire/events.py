"""The bytes of server-sent events: where an event ends, whether clients can parse it, and how token ids are cut out. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import msgspec

from router.wire.transcript import PROMPT_IDS

MAX_LINES = 64
"""Most lines of one event. Workers write one or two."""

LARGE_EVENT_BYTES, MAX_CONTAINERS = 64 << 10, 100_000
"""Most brackets of a large event: each takes about 200 bytes when decoded."""

_IDS, _NO_PROMPT_TEXT = b',"token_ids":[', b',"prompt_text":null'
_NUMBERS = b"0123456789, "
ANY_IDS = b'token_ids":['


def take_events(held: bytearray, payload: bytes) -> bytes:
    """The events that ``payload`` completes. ``held`` keeps the beginning of the next one; each byte is searched once."""
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
    """Where the last whole event ends; 0 if none ends after ``searched``."""
    end = max(text.rfind(b"\n\n", searched) + 2, text.rfind(b"\n\r\n", searched) + 3)
    return end if end > 2 else 0


class _Anything(msgspec.Struct):
    """A JSON object with any members."""


_object = msgspec.json.Decoder(_Anything)
_utf8 = codecs.getincrementaldecoder("utf-8")


def is_costly(event: bytes) -> bool:
    """True if parsing it costs far more than its size suggests: very many lines, or brackets."""
    if len(event) < 2 * MAX_LINES:
        return False
    if _has_more(event, b"\n", b"\r", 2 * MAX_LINES):
        return True
    return len(event) > LARGE_EVENT_BYTES and _has_more(event, b"[", b"{", MAX_CONTAINERS)


def _has_more(event: bytes, one: bytes, other: bytes, most: int) -> bool:
    """True if both bytes together occur more than ``most`` times. It counts in windows, and stops when there are too many."""
    found = 0
    for at in range(0, len(event), LARGE_EVENT_BYTES):
        end = at + LARGE_EVENT_BYTES
        found += event.count(one, at, end) + event.count(other, at, end)
        if found > most:
            return True
    return False


def is_sound(event: bytes) -> bool:
    """True for events that every client can parse: JSON objects in UTF-8, the closing word, and comments. On anything else,
    vendors' clients raise errors that their callers do not expect."""
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
    return is_object(data) or data.strip() == b"[DONE]"


def is_object(data: bytes) -> bool:
    """Checks structure and text without building values: 0.3 µs for a chunk."""
    try:
        _object.decode(data)
        if not data.isascii():
            _require_utf8(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _require_utf8(data: bytes) -> None:
    """In pieces, since a text of megabytes as a whole takes four times as long. Raises UnicodeDecodeError."""
    if len(data) <= LARGE_EVENT_BYTES:
        data.decode()
        return
    decode = _utf8().decode
    for at in range(0, len(data), LARGE_EVENT_BYTES):
        decode(data[at : at + LARGE_EVENT_BYTES])
    decode(b"", final=True)


def each_event(events: bytes) -> Iterator[bytes]:
    """Whole events one by one, each with the blank line that ends it. An event may hold megabytes of ids, so each step is a
    fast search."""
    at = 0
    while at < len(events):
        end = _end_of_event(events, at)
        yield events[at:end]
        at = end


def _end_of_event(events: bytes, at: int) -> int:
    """Searches line ends, which are found faster than blank lines. An event of too many lines takes all that is left."""
    for _ in range(2 * MAX_LINES + 2):
        if (at := events.find(b"\n", at) + 1) == 0:
            break
        if events.startswith(b"\n", at):
            return at + 1
        if events.startswith(b"\r\n", at):
            return at + 2
    return len(events)


def cut_ids(event: bytes) -> bytes:
    """The event without the token ids that the router asked for. They are arrays of numbers, so the next bracket ends them.
    Their names cannot appear inside text, where every quotation mark is escaped."""
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


def is_sound_with(event: bytes, bare: bytes) -> bool:
    """``bare``: the event without its ids. There may be megabytes of ids, which need only be numbers. A large event was checked
    by ``is_costly`` before."""
    if len(event) <= LARGE_EVENT_BYTES:
        return is_sound(event)
    return _can_be_parsed(bare) and all(not ids.translate(None, _NUMBERS) for ids in _each_ids(event))


def _each_ids(event: bytes) -> Iterator[bytes]:
    at = 0
    while (begin := event.find(ANY_IDS, at)) >= 0 and (end := event.find(b"]", begin)) >= 0:
        yield event[begin + len(ANY_IDS) : end]
        at = end
