"""Chunks of a chat completion → the events of a response. Pure.

    response.created  response.in_progress  (items, see ``output_items``)  response.completed | .incomplete | .failed

Events are numbered from 0 without a gap. Nothing follows the last one: there is no ``[DONE]``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.sessions.openai.answer import Outcome, ResponseAnswer
from router.sessions.openai.shapes import Head, failure, response
from router.sessions.openai.values import JsonObject
from router.wire.completion import BadAnswer, Completion, Message, read_chunks
from router.wire.dialects import read_error
from router.wire.events import each_event

_encoder = msgspec.json.Encoder()


class _Unsent:
    """Events for the client. They are apart from ResponseEvents, since the answer writes them, too: otherwise the two would
    hold each other, and a whole answer, long after the request."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._number = 0

    def write(self, kind: str, /, **members: Any) -> None:
        self._events.append(event_bytes(kind, self._number, members))
        self._number += 1

    def take(self) -> bytes:
        unsent = b"".join(self._events)
        self._events.clear()
        return unsent


class ResponseEvents:
    """``begin``, ``feed`` the worker's events, and ``finish`` at their end, or ``fail``. Each returns events for the client.
    The worker's limits bound the answer."""

    def __init__(self, head: Head) -> None:
        self.outcome: Outcome | None = None
        """Set once the response has ended, well or not."""
        self._head = head
        self._unsent = _Unsent()
        self._answer = ResponseAnswer(head, self._unsent.write)

    def begin(self) -> bytes:
        for kind in ("response.created", "response.in_progress"):
            self._unsent.write(kind, response=response(self._head, "in_progress"))
        return self._unsent.take()

    def feed(self, events: bytes) -> bytes:
        """Whole events in any groups. Returns nothing once the response has ended."""
        for event in each_event(events):
            if self.outcome is not None:
                break
            self._take_event(event)
        return self._unsent.take()

    def finish(self, completed_at: int) -> bytes:
        """``completed_at``: Unix seconds. Without a reason for finishing the answer has failed."""
        if self.outcome is None:
            try:
                self._end(self._answer.finish(completed_at))
            except BadAnswer as error:
                self._fail({"code": "server_error", "message": str(error)})
        return self._unsent.take()

    def fail(self, error: JsonObject) -> bytes:
        """``error``: as from ``shapes.failure``, or with another code of the API."""
        if self.outcome is None:
            self._fail(error)
        return self._unsent.take()

    def _take_event(self, event: bytes) -> None:
        try:
            for chunk in read_chunks(event):
                if chunk.error is not None:
                    self._fail(_worker_error(event, chunk.error))
                    return
                self._take(chunk)
        except BadAnswer as error:
            self._fail({"code": "server_error", "message": str(error)})

    def _take(self, chunk: Completion) -> None:
        self._answer.usage = chunk.usage or self._answer.usage
        if (choice := chunk.choice) is not None:
            self._answer.take(choice, choice.delta or Message())

    def _fail(self, error: JsonObject) -> None:
        self._end(Outcome(response(self._head, "failed", self._answer.output, error=error), []))

    def _end(self, outcome: Outcome) -> None:
        self._unsent.write(f"response.{outcome.response['status']}", response=outcome.response)
        self.outcome = outcome


def event_bytes(kind: str, number: int, members: JsonObject) -> bytes:
    data = {"type": kind, "sequence_number": number, **members}
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encoder.encode(data))


def _worker_error(event: bytes, error: object) -> JsonObject:
    message = error.get("message") if isinstance(error, dict) else None
    return failure(read_error(event)[0], message if isinstance(message, str) else "the worker refused the request")
