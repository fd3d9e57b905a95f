"""What stands between a session's turn and its client: a codec of the door that the client came through, and the client's
connection, whose end is held back until the turn is saved.
"""

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
"""Of one answer's events, or of a whole one that is decoded: more than any session may have, framing and all."""


class StoredAnswer(NamedTuple):
    """What of an answer goes into the log. ``tokens``: as the worker counted; 0 where it did not say."""

    messages: Sequence[bytes]
    tokens: int


class AnswerCodec(Protocol):
    """One turn's. Chat completions in; out come what the door's clients read, and the answer. Raises BadAnswer."""

    def events(self, events: bytes) -> bytes:
        """Whole events of the worker's → what the client may have now. What ends the stream is kept for ``ending``."""
        ...

    def ending(self) -> bytes:
        """The rest, once the turn is saved."""
        ...

    def failure(self, error: RouterError) -> bytes:
        """Events by which a stream ends that came to nothing; empty where it is broken off instead."""
        ...

    def whole(self, body: bytes) -> bytes:
        """The same of a reply that is not streamed."""
        ...

    def begin(self, sid: Sid, turn: int, number: int) -> None:
        """Before anything else: which turn it is, and the number that its answer will have in the log."""
        ...

    def kept(self) -> StoredAnswer:
        """After the stream's last event, or ``whole``."""
        ...

    def note(self) -> bytes:
        """What of the answer a repetition of the request needs; JSON."""
        ...

    async def repeat(self, note: bytes, client: Client) -> None:
        """The same answer again."""
        ...


class CommitGate:
    """A client for dispatch. ``reply``: what is held of an answer that is not streamed, or no answer at all."""

    is_chunked = False  # the splice hands over whole events, which may be made into others here

    def __init__(self, client: Client, codec: AnswerCodec) -> None:
        self._client = client
        self._codec = codec
        self._head = b""
        self._event_bytes = 0
        self.record: Record | None = None
        self.reply: Reply | None = None
        self.has_begun = False
        self.error: RouterError | None = None
        """Why the stream came to nothing."""
        self._event = b""
        """In which the worker said so, of a request that was wrong."""

    # Dispatch's side

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
        if self._event_bytes > MAX_ANSWER_BYTES:  # nothing more is kept of it
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
        """The client's own end comes once the turn is saved."""
        self.write(data)

    def is_closing(self) -> bool:
        """Also once the answer cannot be kept any more: the worker need not go on with it."""
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

    # The turn's side

    def translate(self) -> None:
        """A reply that is not streamed, as the door's clients read it. Raises BadAnswer."""
        if self.reply is not None:
            self.reply = msgspec.structs.replace(self.reply, content=self._codec.whole(self.reply.body))

    async def finish(self) -> None:
        """The turn is saved: let the client have the end."""
        if self.reply is not None and self.record is not None:
            await self._client.answer(self.reply, self.record)
        elif not self._client.is_closing():
            if self._head:
                self._client.write(self._take_head())
            self._client.end_stream(self._codec.ending())

    async def refuse(self) -> None:
        """The worker found the request wrong, and says why."""
        if self.reply is not None and self.record is not None:
            await self._client.answer(self.reply, self.record)

    def fail_or_raise(self, error: RouterError) -> None:
        """A stream that has begun ends here; nothing else has been said yet, and the error can be the answer."""
        if not self.has_begun:
            raise error
        untie_error(error)
        if self.record is not None and self.record.outcome == StreamEnd.DONE.value:
            self.record.outcome = error.code  # the worker's part was well, and the client was not told so
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
