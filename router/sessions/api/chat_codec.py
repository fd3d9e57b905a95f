"""Answers for clients of chat completions: the worker's own, passed on."""

from __future__ import annotations

import msgspec

from router.core.errors import RouterError
from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.routes import Route
from router.proxy.ports import Client
from router.sessions.codec import StoredAnswer
from router.sessions.context.messages import message_bytes
from router.sessions.openai.chat_answers import (
    AnswerReader,
    ChatAnswer,
    read_answer,
    write_completion,
    write_events,
)
from router.sessions.stores.contract import Sid
from router.wire.completion import BadAnswer
from router.wire.dialects import DIALECTS
from router.wire.events import each_event

_CHAT = DIALECTS[Route.CHAT]


def _ends(events: bytes) -> bool:
    """True if one of the events belongs to the stream's end."""
    return _CHAT.finished.is_in(events) or _CHAT.usage.is_in(events) or _CHAT.closing.is_in(events)


class ChatCodec:
    """``wants_usage``: of a stream that is sent again."""

    def __init__(self, record: Record, *, stream: bool, wants_usage: bool) -> None:
        self._record = record
        self._stream = stream
        self._wants_usage = wants_usage
        self._reader = AnswerReader()
        self._answer: ChatAnswer | None = None
        self._held: list[bytes] = []

    def events(self, events: bytes) -> bytes:
        self._reader.feed(events)
        if not self._held and not _ends(events):
            return events
        passed = []
        for event in each_event(events):
            if self._held or _ends(event):
                self._held.append(event)
            else:
                passed.append(event)
        return b"".join(passed)

    def ending(self) -> bytes:
        return b"".join(self._held)

    def failure(self, _error: RouterError) -> bytes:
        return b""

    def whole(self, body: bytes) -> bytes:
        self._answer = read_answer(body)
        return body

    def begin(self, _sid: Sid, _turn: int, _number: int) -> None:
        """Chat completions show neither turn nor number."""

    def kept(self) -> StoredAnswer:
        answer = self._whole()
        return StoredAnswer([message_bytes(answer.message)], answer.completion_tokens)

    def _whole(self) -> ChatAnswer:
        if self._answer is None:
            self._answer = self._reader.answer()
        return self._answer

    def note(self) -> bytes:
        return msgspec.json.encode(self._whole())

    async def repeat(self, note: bytes, client: Client) -> None:
        """Streams the answer if the client streams now, whether or not it did then."""
        try:
            answer = msgspec.json.decode(note, type=ChatAnswer)
        except msgspec.ValidationError:
            raise BadAnswer("the turn has no answer that can be sent again") from None
        await send_again(client, self._record, write_completion(answer), self._events_again(answer))

    def _events_again(self, answer: ChatAnswer) -> bytes | None:
        return write_events(answer, wants_usage=self._wants_usage) if self._stream else None


async def send_again(client: Client, record: Record, body: bytes, events: bytes | None) -> None:
    """Sends a stored answer: as ``events`` where the client streams, else whole."""
    if events is None:
        reply = Reply(200, {b"content-type": b"application/json"}, body, is_stream=False)
        await client.answer(reply, record)
        return
    reply = Reply(200, {b"content-type": b"text/event-stream; charset=utf-8"}, b"", is_stream=True)
    if not client.is_closing():
        client.write(client.stream_head(reply, record))
        client.end_stream(events)


def repeated_record(model: str, request_id: str, *, stream: bool, started_at: float) -> Record:
    """The record of an answer that no worker gave."""
    return Record(
        route=Route.CHAT,
        model=model,
        policy="",
        request_id=request_id,
        stream=stream,
        started_at=started_at,
        reason="repeated",
        worker="none",
    )
