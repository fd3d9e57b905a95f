"""One message of a session's log, and the parts that it can lose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec

from router.core.request.canonical import message_segments
from router.sessions.context.entry import Entry
from router.sessions.context.messages import SYSTEM_ROLES, digest
from router.sessions.context.provenance import recalled_numbers
from router.sessions.context.view import LogPosition, with_text_before

REASONING, TEXT = -1, 0
"""Parts of an assistant's message that can be deleted one by one. Tool calls count from 1."""


class Item(NamedTuple):
    """One message of the log."""

    number: int
    """Number of its entry, from 1."""
    turn: int
    at: float
    tokens: int
    """Tokens of the message and of what was recalled for it."""
    body: bytes
    digest: int
    role: str
    sent: bytes
    """The body, with what was recalled for it."""
    recall: tuple[int, bytes] | None = None
    """The entry of what was recalled: its number and body."""
    recall_tokens: int = 0
    parts: tuple[int, ...] = (TEXT,)
    """The parts that are left: ``REASONING``, ``TEXT``, and tool calls, numbered from 1 as they were written."""

    @property
    def calls(self) -> tuple[int, ...]:
        return tuple(part for part in self.parts if part > TEXT)

    @property
    def place(self) -> LogPosition:
        return LogPosition(self.turn, self.number)

    @property
    def is_system(self) -> bool:
        """A system message stays when others are cut."""
        return self.role in SYSTEM_ROLES

    def with_parts(self, parts: tuple[int, ...]) -> Item:
        """The item with only these of its parts."""
        body = keep_parts(self.body, parts, self.calls)
        sent = body if self.recall is None else with_recalled(body, self.recall[1])
        return self._replace(body=body, sent=sent, digest=digest(msgspec.json.decode(body)), parts=parts)

    def not_recalling(self, number: int) -> Item:
        """The item without its recalled text, if that text quotes the item of this number."""
        if self.recall is None or number not in recalled_numbers(msgspec.json.decode(self.recall[1], type=str)):
            return self
        return self._replace(sent=self.body, recall=None, tokens=self.tokens - self.recall_tokens, recall_tokens=0)


def read_item(number: int, entry: Entry, recall: tuple[int, Entry] | None = None) -> Item:
    """``number``: the entry's. ``recall``: the entry before it, if that holds recalled text."""
    body = bytes(entry.body)
    message = msgspec.json.decode(body)
    return Item(
        number=number,
        turn=entry.turn,
        at=entry.at,
        tokens=entry.tokens + (recall[1].tokens if recall is not None else 0),
        body=body,
        digest=digest(message),
        role=str(message.get("role")),
        sent=body if recall is None else with_recalled(body, bytes(recall[1].body)),
        recall=None if recall is None else (recall[0], bytes(recall[1].body)),
        recall_tokens=0 if recall is None else recall[1].tokens,
        parts=_parts_of(message),
    )


def segments_of(body: bytes) -> list[bytes]:
    """The canonical segments of a message's JSON."""
    return message_segments(msgspec.json.decode(body))


def with_recalled(body: bytes, recall: bytes) -> bytes:
    """The message as it is sent, with the text recalled for it. ``recall``: a JSON string."""
    return with_text_before(body, msgspec.json.decode(recall, type=str))


def keep_parts(body: bytes, parts: Collection[int], calls: Sequence[int] = ()) -> bytes:
    """The message with only these parts. ``calls``: the numbers of its tool calls; empty: all that were written."""
    message = msgspec.json.decode(body)
    has = message.pop("tool_calls", None) or []
    left = [call for number, call in zip(calls or range(1, len(has) + 1), has, strict=True) if number in parts]
    dropped = (("content", "refusal") if TEXT not in parts else ()) + (
        ("reasoning", "reasoning_content") if REASONING not in parts else ()
    )
    for name in dropped:
        message.pop(name, None)
    return msgspec.json.encode(message | ({"tool_calls": left} if left else {}))


def _parts_of(message: dict[str, Any]) -> tuple[int, ...]:
    """An assistant's message without calls has a text, even an empty one. Other messages are one part."""
    calls = tuple(range(1, len(message.get("tool_calls") or ()) + 1))
    if message.get("role") != "assistant":
        return (TEXT, *calls)
    reasoning = (REASONING,) if message.get("reasoning") or message.get("reasoning_content") else ()
    text = (TEXT,) if message.get("content") or message.get("refusal") or not calls else ()
    return (*reasoning, *text, *calls)
