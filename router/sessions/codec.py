"""Between a session's turn and its client: the codec of the client's API, and a gate that holds the end of the answer back
until the turn is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from router.core.errors import RouterError, WorkerError
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd
from router.core.tenants.memory import Holding
from router.proxy.ports import Client
from router.runtime.reference_cycles import untie_error
from router.sessions.stores.contract import Sid
from router.wire.completion import BadAnswer
from router.wire.framing import frame

MAX_ANSWER_BYTES = 64 << 20
"""Largest answer, in bytes of its events or of its body: larger than any session may be."""


class StoredAnswer(NamedTuple):
    """The part of an answer that goes into the log. ``tokens``: as the worker counted; 0 where it did not say."""

    messages: Sequence[bytes]
    tokens: int


class AnswerCodec(Protocol):
    """Translates one turn's answer from chat completions to the client's API, and keeps it. Raises BadAnswer."""

    def events(self, events: bytes) -> bytes:
        """Whole events of the worker → events for the client now. Those that end the stream are held for ``ending``."""
        ...

    def ending(self) -> bytes:
        """The held events, once the turn is stored."""
        ...

    def failure(self, error: RouterError) -> bytes:
        """Events that end a failed stream; empty: the stream is broken off instead."""
        ...

    def whole(self, body: bytes) -> bytes:
        """A reply that is not streamed, translated."""
        ...

    def begin(self, sid: Sid, turn: int, number: int) -> None:
        """Called first, with the turn, and the number that its answer will have in the log."""
        ...

    def kept(self) -> StoredAnswer:
        """The answer, after the stream's last event or ``whole``."""
        ...

    def note(self) -> bytes:
        """JSON of the answer that a repetition of the request needs."""
        ...

    async def repeat(self, note: bytes, client: Client) -> None:
        """Sends the answer again, from its note."""
        ...


class CommitGate:
    """A client for dispatch. ``reply``: an answer that is not streamed, or an error of the worker."""

    is_chunked = False  # the splice hands over whole events, since the codec may replace them

    def __init__(self, client: Client, codec: AnswerCodec) -> None:
        self._client = client
        self._codec = codec
        self._head = b""
        self._event_bytes = 0
        self.record: Record | None = None
        self.reply: Reply | None = None
        self.has_begun = False
        self.error: RouterError | None = None
        """Why the stream failed."""
        self._event = b""
        """The worker's event that says so, where the request was wrong."""

    # For dispatch

    @property
    def memory(self) -> Holding:
        return self._client.memory

    async def answer(self, reply: Reply, record: Record) -> None:
        self.reply, self.record = reply, record

    def stream_head(self, reply: Reply, record: Record) -> bytes:
        self.record = record
        self._head += self._client.stream_head(reply, record)
        self.has_begun = True
        return b""

    def write(self, data: bytes) -> None:
        self._event_bytes += len(data)
        if self._event_bytes > MAX_ANSWER_BYTES:  # the rest is not kept
            message = "the worker's answer is larger than a session can keep: ask for less at once"
            self.error = self.error or WorkerError(message, retryable=False)
            return
        try:
            out = self._codec.events(data)
        except BadAnswer:
            self.error = self.error or WorkerError("the worker's answer cannot be understood")
            return
        if (out or self._head) and not self._client.is_closing():
            self._client.write(self._take_head() + (self._framed(out) if out else b""))

    def write_last(self, data: bytes) -> None:
        """The client gets its end when the turn is stored."""
        self.write(data)

    def is_closing(self) -> bool:
        """True also once the answer cannot be stored: the worker need not go on."""
        return self.error is not None or self._client.is_closing()

    def is_full(self) -> bool:
        return self._client.is_full()

    async def drained(self) -> bool:
        return await self._client.drained()

    def end_stream(self, events: bytes) -> None:
        self.write(events)

    def break_off(self, error: RouterError) -> None:
        self.error = self.error or error

    def break_off_with(self, event: bytes) -> None:
        self._event = event
        self.error = self.error or WorkerError("the worker refused to go on", retryable=False)

    # For the turn

    def translate(self) -> None:
        """Translates a reply that is not streamed. Raises BadAnswer."""
        if self.reply is not None:
            self.reply = msgspec.structs.replace(self.reply, content=self._codec.whole(self.reply.body))

    async def finish(self) -> None:
        """Sends the end of the answer: the turn is stored."""
        if self.reply is not None and self.record is not None:
            await self._client.answer(self.reply, self.record)
        elif not self._client.is_closing():
            if self._head:
                self._client.write(self._take_head())
            self._client.end_stream(self._codec.ending())

    async def refuse(self) -> None:
        """Sends the worker's refusal of the request."""
        if self.reply is not None and self.record is not None:
            await self._client.answer(self.reply, self.record)

    def fail_or_raise(self, error: RouterError) -> None:
        """Ends a stream that has begun. Otherwise raises the error, which becomes the answer."""
        if not self.has_begun:
            raise error
        untie_error(error)
        if self.record is not None and self.record.outcome == StreamEnd.DONE.value:
            self.record.outcome = error.code  # the worker did its part, and the client gets an error
        if self._head and not self._client.is_closing():
            self._client.write(self._take_head())
        if events := self._codec.failure(error):
            self._client.end_stream(events)
        elif self._event:
            self._client.break_off_with(self._event)
        else:
            self._client.break_off(error)

    def _take_head(self) -> bytes:
        head, self._head = self._head, b""
        return head

    def _framed(self, events: bytes) -> bytes:
        return frame(events) if self._client.is_chunked else events
