"""A session's view: which part of its log is sent, and the summaries before that. A view seldom changes, since a change before
a prompt's end makes the worker compute all that follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from router.core.tenants.tenant import ContextStrategy
from router.sessions.context.provenance import ACKNOWLEDGEMENT, SUMMARY_FRAME_TOKENS, summary_text

SCHEMA = 1


class BadView(Exception):
    """The bytes are no view. The message is for the operator."""


class NewerView(Exception):
    """A later release wrote it. The message is for the operator."""


class LogPosition(NamedTuple):
    """The position of an item: its turn, and its number in the log. Items are in the order of positions."""

    turn: int = 0
    number: int = 0


START = LogPosition()


class Deletion(NamedTuple):
    """``number``: of the deletion's entry."""

    number: int
    place: LogPosition


class Segment(msgspec.Struct, frozen=True):
    """A frozen summary of the items after ``since``, up to ``upto``. ``tokens``: of the text. ``head``: of the log when its
    source was read."""

    since: LogPosition
    upto: LogPosition
    text: str
    tokens: int
    head: int = 0

    def covers(self, deletion: Deletion) -> bool:
        """True if the deleted item was in the source."""
        return self.since < deletion.place <= self.upto and self.head < deletion.number


class Work(msgspec.Struct, frozen=True):
    """A replica is writing a summary of the items up to ``upto``. ``until``: Unix time from which others may try. ``failures``:
    in a row."""

    token: str
    upto: LogPosition
    until: float
    failures: int = 0


class ContextOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """Context settings of a session, tenant or request, in place of the configured ones. None and 0: not set."""

    strategy: ContextStrategy | None = None
    high_tokens: int = 0
    low_tokens: int = 0
    max_tokens: int = 0
    """Tokens of the whole prompt."""

    def over(self, other: ContextOverrides) -> ContextOverrides:
        """These, and the other's where these are not set."""
        return ContextOverrides(
            strategy=self.strategy or other.strategy,
            high_tokens=self.high_tokens or other.high_tokens,
            low_tokens=self.low_tokens or other.low_tokens,
            max_tokens=self.max_tokens or other.max_tokens,
        )


NO_OVERRIDES = ContextOverrides()


class View(msgspec.Struct, frozen=True, kw_only=True):
    """``cut``: items up to there are not sent. ``segments`` summarise the oldest of them; ``omitted`` counts those that no
    summary covers."""

    schema: int = SCHEMA
    cut: LogPosition = START
    question: LogPosition = START
    """The question before the cut that the first sent item answers; it is sent, too. START: there is none."""
    segments: list[Segment] = []
    omitted: int = 0
    pending: list[Segment] = []
    """Summaries of items that are cut already. They are shown from the next cut on, when the prompt changes anyway."""
    work: Work | None = None
    overrides: ContextOverrides = NO_OVERRIDES

    @property
    def ready(self) -> list[Segment]:
        """The summaries that the next cut shows. One made of others replaces them."""
        shown: list[Segment] = []
        for segment in (*self.segments, *self.pending):
            shown = [other for other in shown if other.upto <= segment.since] + [segment]
        return shown

    @property
    def summarized_upto(self) -> LogPosition:
        """The last position that a summary covers."""
        return max((segment.upto for segment in (*self.segments, *self.pending)), default=START)

    @property
    def tokens(self) -> int:
        """Tokens of the summaries in the prompt, without a question."""
        return summary_tokens(self.segments) if self.segments or self.omitted else 0

    def without(self, deletions: Sequence[Deletion]) -> View:
        """The view without summaries of deleted items and those after them, which are written anew. The history counts
        ``omitted``."""
        shown = list(takewhile(lambda segment: not any(map(segment.covers, deletions)), self.segments))
        pending, upto = [], max((segment.upto for segment in shown), default=START)
        for segment in self.pending:
            if segment.since > upto or any(map(segment.covers, deletions)):
                break
            pending.append(segment)
            upto = segment.upto
        if (len(shown), len(pending)) == (len(self.segments), len(self.pending)):
            return self
        return replace(self, segments=shown, pending=pending)

    def preface(self, question: bytes | None) -> list[bytes]:
        """The messages in place of cut items: none, one, or two. ``question``: its body."""
        if not self.segments and not self.omitted:
            return []
        text = summary_text([segment.text for segment in self.segments], self.omitted)
        if question is not None:
            return [with_text_before(question, text)]
        return [_message("user", text), _message("assistant", ACKNOWLEDGEMENT)]


def summary_tokens(segments: Iterable[Segment]) -> int:
    return SUMMARY_FRAME_TOKENS + sum(segment.tokens for segment in segments)


def with_text_before(body: bytes, text: str) -> bytes:
    """The message's JSON, with the text before its content."""
    message = msgspec.json.decode(body)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = [{"type": "text", "text": text}, *content]
    else:
        message["content"] = f"{text}\n\n{content or ''}"
    return _encoder.encode(message)


def _message(role: str, text: str) -> bytes:
    return _encoder.encode({"role": role, "content": text})


WHOLE = View()
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(View)


def encode_view(view: View) -> bytes:
    return _encoder.encode(view)


def decode_view(data: bytes | None) -> View:
    """``data`` None: there is no view, and all is sent. Raises BadView, NewerView."""
    if data is None:
        return WHOLE
    try:
        view = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise BadView(f"a view cannot be read: {error}") from None
    if view.schema != SCHEMA:
        raise NewerView(f"a view has schema {view.schema}, newer than {SCHEMA}")
    return view
