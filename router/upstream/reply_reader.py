"""Reads one reply of a worker: its head, and then a body that is held whole or cut into events.

A worker may be hostile or broken. The memory that a reply takes here is bounded and counted, and each byte is searched a fixed
number of times.
"""

from __future__ import annotations

from router.core.request.attempt import AttemptFailed, ReplyTooLarge, WorkerDied
from router.core.tenants.memory import REPLY, UNCOUNTED_BYTES, Holding
from router.wire.events import take_events
from router.wire.framing import BodyReader, LengthReader
from router.wire.reply_head import MAX_HEAD_BYTES, BadHead, ReplyHead, body_reader, parse_head

LARGE_BYTES = 64 << 10
"""Above this size an incomplete event counts as memory, and a stream without a client is not read further."""

PIECE_BYTES = 1 << 20
"""A whole reply is held in pieces of this size. The allocator returns such pieces to the system at once."""

MAX_INTERIM_HEADS = 16

REJECTION_KINDS = ("head", "framing", "stream", "size", "probe")
"""Why a worker's reply is rejected. Label values of a metric."""


class RejectedReply(Exception):
    """The reply is not as it must be. ``error``: how the attempt fails."""

    def __init__(self, kind: str, error: AttemptFailed) -> None:
        super().__init__(kind)
        self.kind = kind
        self.error = error


class ReplyReader:
    """Reads one reply. ``memory`` grows with what is held of it. Sizes are in bytes."""

    __slots__ = (
        "_interim_heads",
        "_is_counted",
        "_max_event_bytes",
        "_max_reply_bytes",
        "_memory",
        "body",
        "has_answered",
        "head",
        "held",
        "piece_bytes",
        "pieces",
    )

    def __init__(self, max_reply_bytes: int, max_event_bytes: int, memory: Holding | None) -> None:
        self._max_reply_bytes = max_reply_bytes
        self._max_event_bytes = max_event_bytes
        self._memory = memory
        self._interim_heads = 0
        self._is_counted = False
        """An incomplete event is counted as memory."""
        self.head = ReplyHead()
        self.body: BodyReader = LengthReader(0)
        self.has_answered = False
        """A byte of the reply has come."""
        self.held = bytearray()
        """An incomplete part: of the head, of an event, or the last piece of a whole reply."""
        self.pieces: list[bytes] = []
        self.piece_bytes = 0

    def read_head(self, data: bytes) -> bytes | None:
        """Returns what follows the final head in ``data``; None until that head is complete. Raises RejectedReply."""
        self.has_answered = True
        if self.held:
            data = bytes(self.held) + data
            self.held.clear()
        while (end := data.find(b"\r\n\r\n") + 4) >= 4:
            try:
                self.head = parse_head(data[:end])
                self.body = body_reader(self.head)
            except BadHead:
                raise RejectedReply("head", WorkerDied("the worker sent a bad response head")) from None
            data = data[end:]
            if not self.head.is_interim:
                return data
            self._interim_heads += 1
            if self._interim_heads > MAX_INTERIM_HEADS:
                raise RejectedReply("head", WorkerDied("the worker sent one interim head after another"))
        self.held += data
        if len(data) > MAX_HEAD_BYTES or not b"HTTP/1.".startswith(data[:7]):
            raise RejectedReply("head", WorkerDied("the worker does not speak HTTP"))
        return None

    def hold(self, payload: bytes) -> None:
        """Keep a part of a whole reply. Small parts are joined: each alone would take many times its size, and the process
        would keep that memory after the reply. Raises RejectedReply, MemoryFull."""
        self.piece_bytes += len(payload)
        if self.piece_bytes > self._max_reply_bytes:
            raise RejectedReply("size", ReplyTooLarge("the reply is larger than may be held"))
        if self._memory is not None and self.piece_bytes > UNCOUNTED_BYTES:
            self._memory.resize(REPLY, self.piece_bytes)
        if not self.held and not self.pieces:
            self.pieces.append(payload)
            return
        self.held += payload
        if len(self.held) >= PIECE_BYTES:
            self.pieces.append(bytes(self.held))
            self.held.clear()

    def take_whole(self) -> bytes | tuple[bytes, ...]:
        """The body of a whole reply. The reader keeps it no longer."""
        if self.held:
            self.pieces.append(bytes(self.held))
            self.held.clear()
        pieces, self.pieces = self.pieces, []
        return b"".join(pieces) if self.piece_bytes <= LARGE_BYTES else tuple(pieces)

    def whole_events(self, payload: bytes) -> bytes:
        """The events that ``payload`` completes. Raises RejectedReply, MemoryFull for an event that is too large."""
        whole = take_events(self.held, payload)
        held_bytes = len(self.held)
        if held_bytes > self._max_event_bytes:
            raise RejectedReply("size", ReplyTooLarge("an event is larger than may be held"))
        if held_bytes > LARGE_BYTES or self._is_counted:
            self._is_counted = held_bytes > LARGE_BYTES
            if self._memory is not None:
                self._memory.resize(REPLY, held_bytes if self._is_counted else 0)
        return whole

    def keep_events(self, events: bytes) -> bool:
        """Keep the first events of a stream until a client takes them. False once no more should be read before that."""
        self.pieces.append(events)
        self.piece_bytes += len(events)
        return self.piece_bytes <= LARGE_BYTES

    def drop(self) -> None:
        """Let go of the reply, and of the memory that is counted for it."""
        if self._memory is not None:
            self._memory.resize(REPLY, 0)
        self.release()

    def release(self) -> None:
        """Let go of the reply. Its memory is the owner's from now on."""
        self.pieces.clear()
        self._memory = None
