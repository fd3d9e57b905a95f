"""What of a session's log is sent: everything behind the cut, and before it notes of what was cut. A view changes seldom and
never by itself, since whatever changes before the end of a prompt is computed anew by the worker.
"""

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
    """Behind an item: its turn, and its number in the log. Items stand in the order of places."""

    turn: int = 0
    number: int = 0


START = LogPosition()


class Deletion(NamedTuple):
    """``number``: of its entry in the log."""

    number: int
    place: LogPosition


class Segment(msgspec.Struct, frozen=True):
    """Frozen notes of the items behind ``since``, up to ``upto``. ``tokens``: of the text. ``head``: the log's, when what they
    tell of was read."""

    since: LogPosition
    upto: LogPosition
    text: str
    tokens: int
    head: int = 0

    def covers(self, deletion: Deletion) -> bool:
        """Of what it took away, since it was still there."""
        return self.since < deletion.place <= self.upto and self.head < deletion.number


class Work(msgspec.Struct, frozen=True):
    """Somebody is writing notes of the items up to that place. ``until``: Unix time at which others may try; ``failures``: in
    a row."""

    token: str
    upto: LogPosition
    until: float
    failures: int = 0


class ContextOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """What a session, a tenant or a request wishes instead of what is configured; None and 0: nothing."""

    strategy: ContextStrategy | None = None
    high_tokens: int = 0
    low_tokens: int = 0
    max_tokens: int = 0
    """Of the whole prompt."""

    def over(self, other: ContextOverrides) -> ContextOverrides:
        """These, and what the other wishes where these are silent."""
        return ContextOverrides(
            strategy=self.strategy or other.strategy,
            high_tokens=self.high_tokens or other.high_tokens,
            low_tokens=self.low_tokens or other.low_tokens,
            max_tokens=self.max_tokens or other.max_tokens,
        )


NO_OVERRIDES = ContextOverrides()


class View(msgspec.Struct, frozen=True, kw_only=True):
    """``cut``: items up to there are not sent. ``segments`` tell of the first of them, in order; ``omitted`` is how many none
    tells of."""

    schema: int = SCHEMA
    cut: LogPosition = START
    question: LogPosition = START
    """Of the item before the cut that what comes behind it belongs to; it is sent. START: there is none."""
    segments: list[Segment] = []
    omitted: int = 0
    pending: list[Segment] = []
    """Notes of elided items: shown from the next cut on, since the prompt changes then anyway."""
    work: Work | None = None
    overrides: ContextOverrides = NO_OVERRIDES

    @property
    def ready(self) -> list[Segment]:
        """What the next cut shows. Notes that were made of other notes take their place."""
        shown: list[Segment] = []
        for segment in (*self.segments, *self.pending):
            shown = [other for other in shown if other.upto <= segment.since] + [segment]
        return shown

    @property
    def summarized_upto(self) -> LogPosition:
        """Up to where notes tell of the log."""
        return max((segment.upto for segment in (*self.segments, *self.pending)), default=START)

    @property
    def tokens(self) -> int:
        """Of what stands for what is not sent, without a question."""
        return summary_tokens(self.segments) if self.segments or self.omitted else 0

    def without(self, deletions: Sequence[Deletion]) -> View:
        """Without notes that tell of what was deleted, and those behind them: they are written again. What is elided then, is
        for the history to count."""
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
        """The messages that stand for what is not sent: none, one, or two. ``question``: the body of the item of that place."""
        if not self.segments and not self.omitted:
            return []
        text = summary_text([segment.text for segment in self.segments], self.omitted)
        if question is not None:
            return [with_text_before(question, text)]
        return [_message("user", text), _message("assistant", ACKNOWLEDGEMENT)]


def summary_tokens(segments: Iterable[Segment]) -> int:
    return SUMMARY_FRAME_TOKENS + sum(segment.tokens for segment in segments)


def with_text_before(body: bytes, text: str) -> bytes:
    """A message's JSON, with the text before its content."""
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
    """None: there never was one, and all is sent. Raises BadView, NewerView."""
    if data is None:
        return WHOLE
    try:
        view = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise BadView(f"a view cannot be read: {error}") from None
    if view.schema != SCHEMA:
        raise NewerView(f"a view has schema {view.schema}, newer than {SCHEMA}")
    return view
