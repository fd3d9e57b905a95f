"""How the streams of each API speak: what ends one, what fails one, and what counts its tokens. Pure.

Marks are searched as bytes, since parsing each event would cost more than everything else that is done for it. They cannot
appear inside text: there, every quotation mark is escaped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from router.core.request.routes import Api, Route

_DIED_WITHIN_BYTES = 64 << 10
_ERROR_CODE = re.compile(rb'"code": ?([45]\d\d)\b')
_ENGINE_DIED = (b"EngineCore encountered an issue", b"EngineDeadError")


class Mark:
    """Texts of which a matching event has at least one, anywhere or at the beginning of a line. Plain searches, since an event
    may have megabytes, for which a regular expression would take ten times as long."""

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
        """Events have few lines: finding them is ten times faster than searching the marks in megabytes."""
        at = 0
        while not event.startswith(self._begins, at):
            at = event.find(b"\n", at) + 1
            if not at:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Dialect:
    """Every mark is searched in whole events."""

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


def read_error(event: bytes) -> tuple[int, bytes]:
    """Status and JSON of an error event: the status that it names, 400 to 599, else 500. vLLM sends one for an error that it
    finds only after its stream has begun."""
    body = event[event.find(b"data:") + 5 :].strip()
    code = _ERROR_CODE.search(body)
    return int(code[1]) if code else 500, body


def says_engine_died(text: bytes) -> bool:
    """True for an answer or an error event of vLLM's front end that reports its engine's death. The front end outlives the
    engine by some seconds."""
    begin = text[:_DIED_WITHIN_BYTES]
    return any(mark in begin for mark in _ENGINE_DIED)
