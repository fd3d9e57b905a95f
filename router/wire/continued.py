"""Turns the stream of the worker that continues an answer into the rest of the first worker's stream.

The id, creation time and model stay; there is no second role; stop strings are searched across the seam; one reason for
finishing; and a usage that counts the whole answer. Such streams are rare and short, so their events are parsed and written
anew.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.request.routes import PromptForm, Route
from router.wire.completion import BadAnswer, Choice, read_chunks
from router.wire.continuation import Asked, Seam
from router.wire.dialects import DIALECTS
from router.wire.events import each_event, is_costly
from router.wire.sse import MAX_EMPTY_EVENTS
from router.wire.transcript import REPLACEMENT, Delivered
from router.wire.usage import Usage, read_event_usage

_encode = msgspec.json.encode

MAX_FIRST_IDS = 10_000
"""Most tokens with which a continuation may begin before any text comes."""


class StopSearch:
    """Passes text up to the first stop string. A possible beginning of a stop string is held back."""

    def __init__(self, stops: tuple[str, ...], *, keeps_stop: bool, sent: str, held: str) -> None:
        """``sent``: the client's text; ``held``: unsent text after it."""
        self._stops = stops
        self._keeps_stop = keeps_stop
        self._reach = max(map(len, stops), default=1) - 1
        self._buffer = held
        self._tail = self._end_of(sent) if keeps_stop else ""
        """With ``keeps_stop`` text leaves at once, so a stop string may begin in the client's text."""
        self.found: str | None = None

    def _end_of(self, sent: str) -> str:
        return sent[-self._reach :] if self._reach else ""

    def feed(self, text: str) -> str:
        """Returns the text that may be sent now."""
        if self.found is not None:
            return ""
        self._buffer += text
        window = self._tail + self._buffer
        sent = len(self._tail)
        hits = [(at, stop) for stop in self._stops if (at := window.find(stop, max(sent + 1 - len(stop), 0))) >= 0]
        if hits:
            at, self.found = min(hits, key=lambda hit: hit[0])
            return window[sent : at + len(self.found) if self._keeps_stop else at]
        if self._keeps_stop:
            out, self._buffer = self._buffer, ""
            self._tail = self._end_of(window)
        else:
            may_leave = max(len(window) - self._reach, 0)
            out, self._buffer = window[:may_leave], window[may_leave:]
        return out

    def flush(self) -> str:
        """The answer ends without a stop string: returns the text that was held back."""
        out, self._buffer = self._buffer, ""
        return out if self.found is None else ""


class ContinuedFilter:
    """The filter of the new stream. ``delivered``, its own copy, grows with each event for the client, so that this stream may
    break, too."""

    def __init__(self, asked: Asked, delivered: Delivered, seam: Seam | None) -> None:
        """``seam``: for an exact continuation; None for one by text."""
        self._asked = asked
        self.delivered = delivered
        self._is_exact = seam is not None
        self._skipped = seam.skipped if seam else ""
        self._known_ids: list[int] = []
        """Ids that the client has already, although the new answer begins before them. Only for clients that asked for ids."""
        if seam is not None:
            if asked.wants_ids:
                self._known_ids = delivered.ids[seam.kept_ids :].tolist()
            delivered.cut(seam.kept_ids, len(seam.skipped))
        held = seam.held if seam else ""
        self._search = StopSearch(asked.stops, keeps_stop=asked.keeps_stop, sent=delivered.text, held=held)
        self._before = len(delivered.ids) if seam is not None else delivered.chunks
        self._finish: tuple[str, int | str | None] | None = None
        self._began = False
        self._empty = 0
        """Events without data since the last event with data."""
        self._unsent_ids: list[int] = []
        """Ids without text. They wait for the first text, which shows whether this is the rest of the answer."""
        self.first_ids: list[int] = []
        """The new answer's ids up to its first text."""
        self.first_text = ""
        self.finished = False
        self.closed = False
        self.failed = False
        self.unsafe = ""
        """Why no worker may continue this answer, if it is not the worker's fault; else empty."""
        self.error = b""
        self.usage: Usage | None = None

    def is_plain(self, _data: bytes) -> bool:
        return False

    def pass_frame(self, data: bytes, _at: int) -> bytes:
        """Never called: nothing here is plain."""
        return data

    def take(self, events: bytes) -> bytes:
        """Takes whole events; returns those of the rest of the answer."""
        out = []
        for event in each_event(events):
            if self.failed or self.closed:
                break
            self._empty = 0 if b"data:" in event else self._empty + 1
            if self._empty > MAX_EMPTY_EVENTS or is_costly(event):
                self.failed = True
                break
            out.append(self._take_one(event))
        return b"".join(out)

    def tokens(self, bytes_per_token: float) -> float:
        """Tokens of the whole answer so far."""
        delivered = self.delivered
        return len(delivered.ids) if delivered.has_ids else max(delivered.chunks, delivered.chars / bytes_per_token)

    def rest(self) -> bytes:
        """For a stream that broke after its reason for finishing: the events that still belong to it."""
        return self._close() if self.finished and not self.closed else b""

    def _take_one(self, event: bytes) -> bytes:
        dialect = DIALECTS[self._asked.route]
        if dialect.failed.is_in(event):
            self.failed, self.error = True, event
            return b""
        if dialect.closing.is_in(event):
            self.failed = not self.finished
            return self.rest()
        try:
            chunks = read_chunks(event)
        except BadAnswer:
            return self._give_up("parsed")
        out = b""
        for chunk in chunks:
            self.delivered.fingerprint = chunk.system_fingerprint or self.delivered.fingerprint
            if chunk.choices:
                out += self._take_choice(chunk.choices[0])
            elif (usage := read_event_usage(event)) is not None:
                self.usage = usage
        return out

    def _take_choice(self, choice: Choice) -> bytes:
        if not choice.is_plain or (self._is_exact and choice.content and not choice.token_ids):
            return self._give_up("parsed")  # without ids, how far this text goes is unknown
        text = self._past_the_seam(choice)
        if len(self.first_ids) > MAX_FIRST_IDS:
            return self._give_up("parsed")
        if text is None or (choice.finish_reason and self._skipped):
            return self._give_up("seam")
        shown = self._search.feed(text)
        if self._search.found is not None:
            self._finish = ("stop", self._search.found)
        elif choice.finish_reason:
            shown += self._search.flush()
            self._finish = (choice.finish_reason, choice.stop_reason)
        self.delivered.add_tokens(shown, choice.token_ids)
        if self._asked.wants_ids and not self._take_ids(choice.token_ids or []):
            return self._give_up("seam")
        out = self._delta(shown) if shown or (self._began and self._unsent_ids) else b""
        self.finished = self._finish is not None
        if self._search.found is None:
            return out
        return out + self._close()  # the worker would go on: closing its connection stops it

    def _take_ids(self, ids: list[int]) -> bool:
        """Queue the ids that the client lacks. False if the others, drawn anew, differ from those that it has."""
        known, self._known_ids = self._known_ids[: len(ids)], self._known_ids[len(ids) :]
        self._unsent_ids += ids[len(known) :]
        return ids[: len(known)] == known

    def _give_up(self, reason: str) -> bytes:
        self.failed, self.unsafe = True, reason
        return b""

    def _past_the_seam(self, choice: Choice) -> str | None:
        """The new text without the part that the client has; None if that part differs."""
        text = choice.content
        if not self._began:
            self.first_ids += choice.token_ids or ()
            self.first_text += text
            self._began = bool(text)
        if not (self._skipped and text):
            return text
        known = min(len(self._skipped), len(text))
        if text[:known] != self._skipped[:known]:
            return None
        self._skipped = self._skipped[known:]
        return text[known:]

    # The client's events

    def _delta(self, text: str) -> bytes:
        return self._chunk(self._choice(text, None))

    def _close(self) -> bytes:
        self.closed = True
        reason, stop_reason = self._finish or ("stop", None)
        choice = self._choice("", reason)
        choice["stop_reason"] = stop_reason
        out = self._chunk(choice, is_last=True)
        self.usage = self._count()
        if self._asked.wants_usage and self.usage is not None:
            out += usage_event(self._asked.route, self.delivered, self.usage)
        return out + DIALECTS[self._asked.route].closing_event

    def _count(self) -> Usage | None:
        """The usage of the whole answer: the second worker counted the first one's tokens as prompt."""
        delivered, theirs = self.delivered, self.usage
        if self._is_exact:
            return Usage(len(delivered.prompt_ids or ()), None, len(delivered.ids))
        if theirs is None:
            return None
        return Usage(theirs.prompt_tokens - self._before, None, theirs.output_tokens + self._before)

    def _choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        if self._asked.route.spec.prompt is PromptForm.MESSAGES:
            choice["delta"] = {"content": text}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        if self._unsent_ids:
            choice["token_ids"], self._unsent_ids = self._unsent_ids, []
        return choice

    def _chunk(self, choice: dict[str, Any], *, is_last: bool = False) -> bytes:
        chunk = _envelope(self._asked.route, self.delivered)
        chunk["choices"] = [choice]
        if is_last and not self._asked.wants_usage:
            _sign(chunk, self.delivered)
        return b"data: %b\n\n" % _encode(chunk)


def usage_event(route: Route, delivered: Delivered, usage: Usage | None = None) -> bytes:
    """The chunk that counts a whole answer whose usage no worker reported; empty if it is unknown."""
    if usage is None:
        if not delivered.has_ids:
            return b""
        usage = Usage(len(delivered.prompt_ids or ()), None, len(delivered.ids))
    chunk = _envelope(route, delivered)
    chunk["choices"] = []
    chunk["usage"] = {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "completion_tokens": usage.output_tokens,
    }
    _sign(chunk, delivered)
    return b"data: %b\n\n" % _encode(chunk)


def _envelope(route: Route, delivered: Delivered) -> dict[str, Any]:
    """The members that all chunks of one answer share."""
    return {
        "id": delivered.id,
        "object": "chat.completion.chunk" if route.spec.prompt is PromptForm.MESSAGES else "text_completion",
        "created": delivered.created,
        "model": delivered.model,
    }


def _sign(chunk: dict[str, Any], delivered: Delivered) -> None:
    if delivered.fingerprint:
        chunk["system_fingerprint"] = delivered.fingerprint


def leaks(first_text: str, known: str) -> bool:
    """True if the new answer's first text is longer than ``known``, the text of its ids alone: a worker that was asked to begin
    inside a character sends the whole prompt before it. One more character may be a word's leading space, which is left out at
    the beginning of a text."""
    return len(first_text.replace(REPLACEMENT, "")) > len(known) + 1
