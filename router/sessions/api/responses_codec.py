"""Answers for clients of the Responses API: chat completions in, responses out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from router.core.errors import RouterError
from router.core.request.record import Record
from router.proxy.ports import Client
from router.sessions.api.chat_codec import send_again
from router.sessions.api.items import item_id
from router.sessions.codec import StoredAnswer
from router.sessions.openai.answer import Outcome
from router.sessions.openai.output import translate
from router.sessions.openai.shapes import Head, failure, response
from router.sessions.openai.stream import ResponseEvents, event_bytes
from router.sessions.stores.contract import Sid
from router.wire.completion import BadAnswer


class ResponsesCodec:
    """``wall_clock``: Unix time. ``echo``: members of the request that the response shows."""

    def __init__(
        self,
        record: Record,
        response_id: str,
        echo: Mapping[str, Any],
        wall_clock: Callable[[], float],
        *,
        stream: bool,
        wants_logprobs: bool,
    ) -> None:
        self._record = record
        self._id = response_id
        self._echo = echo
        self._wall_clock = wall_clock
        self._created_at = int(wall_clock())
        self._stream = stream
        self._wants_logprobs = wants_logprobs
        self._begin(Sid(""), 0)
        self._has_begun = False
        self._outcome: Outcome | None = None
        self._ending = b""

    def under_way(self) -> bytes:
        """The response before any output."""
        return msgspec.json.encode(response(self._head, "in_progress"))

    def begin(self, sid: Sid, _turn: int, number: int) -> None:
        self._begin(sid, number)

    def events(self, events: bytes) -> bytes:
        first = b"" if self._has_begun else self._events.begin()
        self._has_begun = True
        return first + self._events.feed(events)

    def ending(self) -> bytes:
        return self._ending

    def failure(self, error: RouterError) -> bytes:
        if self._outcome is not None:  # whole, but it could not be stored
            self._events.outcome = None
        begun = b"" if self._has_begun else self._events.begin()
        return begun + self._events.fail(failure(error.status, error.message))

    def whole(self, body: bytes) -> bytes:
        self._outcome = translate(body, self._head, int(self._wall_clock()))
        self._require_answer()
        return msgspec.json.encode(self._outcome.response)

    def kept(self) -> StoredAnswer:
        if self._outcome is None:
            self._ending = self._events.finish(int(self._wall_clock()))
            self._outcome = self._events.outcome
        self._require_answer()
        usage = self._outcome.response["usage"] if self._outcome else None
        return StoredAnswer(self._outcome.messages if self._outcome else [], usage["output_tokens"] if usage else 0)

    def note(self) -> bytes:
        return msgspec.json.encode(self._outcome.response if self._outcome else None)

    async def repeat(self, note: bytes, client: Client) -> None:
        stored = msgspec.json.decode(note)
        begun = {**stored, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
        kinds = (("response.created", begun), ("response.in_progress", begun), (f"response.{stored['status']}", stored))
        events = b"".join(event_bytes(kind, at, {"response": shown}) for at, (kind, shown) in enumerate(kinds))
        await send_again(client, self._record, note, events if self._stream else None)

    def _begin(self, sid: Sid, number: int) -> None:
        name = item_id(sid)
        self._head = Head(self._id, self._created_at, self._echo, lambda part: name(number, part), self._wants_logprobs)
        self._events = ResponseEvents(self._head)

    def _require_answer(self) -> None:
        """Raises BadAnswer."""
        if self._outcome is None or not self._outcome.messages:
            raise BadAnswer("the worker gave no answer")
