"""The part of a streamed answer that the client has, so that another worker can continue it.

A stream that ends well needs none of this, so events are kept as raw bytes with their framing, and are parsed only when the
stream breaks. A long stream is folded now and then into its parsed form, which is a tenth of the size.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

import msgspec

from router.wire.completion import BadAnswer, Completion, read_chunks

FOLD_BYTES = 64 << 10
"""Raw events are folded beyond this size: about 250 tokens, in half a millisecond."""

MAX_FOLD_BYTES = FOLD_BYTES + (256 << 10)
"""Most bytes parsed at once, without the prompt's ids: some milliseconds."""

REPLACEMENT = "\ufffd"
"""The character that decoding puts in place of an incomplete one."""


PROMPT_IDS = b',"prompt_token_ids":['
"""The text before the prompt's ids in compact JSON; the next bracket ends them."""


@dataclass(slots=True)
class TranscriptBudget:
    """Bytes that all transcripts together keep, and may keep, beyond the first ``FOLD_BYTES`` of each."""

    max_bytes: int
    bytes: int = 0


@dataclass(slots=True)
class Delivered:
    """A transcript in its parsed form."""

    id: str = ""
    created: int = 0
    model: str = ""
    fingerprint: str | None = None
    prompt_ids: list[int] | None = None
    ids: array[int] = field(default_factory=lambda: array("l"))
    texts: list[str] = field(default_factory=list)
    chunks: int = 0
    """Chunks with text: no more than there were tokens."""
    whole_ids: int = 0
    """Number of ids up to the end of the last chunk that ended with a whole character."""
    whole_chars: int = 0
    """Length of the text of those ids."""
    chars: int = 0
    is_grouped: bool = False
    """Some chunk had several ids, so a character may have begun after the text of its last one."""
    lacks_ids: bool = False
    """Some text came without ids."""
    is_plain: bool = True
    """Only text came: no tool calls, reasoning, refusals, log probabilities or further choices."""

    @property
    def text(self) -> str:
        if len(self.texts) > 1:
            self.texts[:] = ["".join(self.texts)]
        return self.texts[0] if self.texts else ""

    @property
    def has_ids(self) -> bool:
        return self.prompt_ids is not None and not self.lacks_ids

    @property
    def bytes(self) -> int:
        """About the bytes that it keeps."""
        return self.ids.itemsize * len(self.ids) + self.chars

    def copy(self) -> Delivered:
        """A copy that may grow while this one stays; the prompt's ids are shared."""
        return replace(self, ids=self.ids[:], texts=self.texts[:])

    def add(self, chunk: Completion) -> None:
        self.id = self.id or chunk.id or ""
        self.created = self.created or chunk.created or 0
        self.model = self.model or chunk.model or ""
        self.fingerprint = self.fingerprint or chunk.system_fingerprint
        for choice in chunk.choices or ():
            prompt_ids = chunk.prompt_token_ids or choice.prompt_token_ids
            if prompt_ids is not None:
                self.prompt_ids = prompt_ids
            self.is_plain &= choice.is_plain
            self.add_tokens(choice.content, choice.token_ids)

    def cut(self, kept_ids: int, skipped_chars: int) -> None:
        """Forget the ids after the first ``kept_ids``, whose text ends ``skipped_chars`` before the client's."""
        del self.ids[kept_ids:]
        if self.whole_ids >= kept_ids:
            self.whole_ids, self.whole_chars = kept_ids, self.chars - skipped_chars

    def add_tokens(self, text: str, ids: list[int] | None) -> None:
        self.ids.extend(ids or ())
        self.is_grouped |= len(ids or ()) > 1
        if text:
            self.texts.append(text)
            self.chunks += 1
            self.chars += len(text)
            self.lacks_ids |= not ids
            if not text.endswith(REPLACEMENT):
                self.whole_ids, self.whole_chars = len(self.ids), self.chars


class Transcript:
    """The transcript of one answer. It is bounded: beyond ``max_bytes``, or if all transcripts together keep too much, it is
    cleared, and ``is_lost``."""

    __slots__ = ("_counted", "_delivered", "_kept", "_max_bytes", "_prompt_ids", "_raw", "_raw_bytes", "is_lost")

    def __init__(self, max_bytes: int, kept: TranscriptBudget) -> None:
        self._max_bytes = max_bytes
        self._kept = kept
        self._prompt_ids = b""
        """Undecoded JSON: there may be a million ids, and they are seldom read."""
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._delivered = Delivered()
        self._counted = 0
        self.is_lost = False

    def __repr__(self) -> str:
        return f"Transcript({'lost' if self.is_lost else f'{self._raw_bytes + self._counted} bytes'})"

    def keep(self, events: bytes) -> None:
        """``events``: whole events, with or without the chunked coding around them."""
        if self.is_lost:
            return
        self._raw.append(events)
        self._raw_bytes += len(events)
        if self._raw_bytes > FOLD_BYTES:
            self._fold()

    def delivered(self) -> Delivered:
        """Raises BadAnswer for events that are no chunks."""
        self._read()
        if self._prompt_ids:
            self._delivered.prompt_ids = msgspec.json.decode(self._prompt_ids, type=list[int])
            self._prompt_ids = b""
        return self._delivered

    def count_ids(self) -> int:
        """Tokens of the answer so far; 0 if they are unknown."""
        try:
            delivered = self.delivered()
        except BadAnswer:
            return 0
        return len(delivered.ids) if not (self.is_lost or delivered.lacks_ids) else 0

    def clear(self) -> None:
        """Forget everything, and give the bytes back to the common budget."""
        self._kept.bytes -= self._counted
        self._counted = self._raw_bytes = 0
        self._raw.clear()
        self._prompt_ids = b""
        self._delivered = Delivered()
        self.is_lost = False

    def _read(self) -> None:
        raw = b"".join(self._raw)
        self._raw.clear()
        self._raw_bytes = 0
        for chunk in read_chunks(raw):
            self._delivered.add(chunk)

    def _try_read(self) -> int:
        """Fold the events. Returns about how many bytes are kept then, or more than allowed if the events cannot be read or are
        too large."""
        if sum(map(len, self._raw)) > MAX_FOLD_BYTES:
            return self._max_bytes + 1
        try:
            self._read()
        except BadAnswer:
            return self._max_bytes + 1
        return self._delivered.bytes

    def _fold(self) -> None:
        first = self._raw[0]
        if not self._prompt_ids and (at := first.find(PROMPT_IDS)) >= 0:
            end = first.index(b"]", at) + 1
            self._prompt_ids, self._raw[0] = first[at + len(PROMPT_IDS) - 1 : end], first[:at] + first[end:]
        size = len(self._prompt_ids) + self._try_read()
        if size > self._max_bytes or self._kept.bytes + size - self._counted > self._kept.max_bytes:
            self.clear()
            self.is_lost = True
        else:
            self._kept.bytes += size - self._counted
            self._counted = size
