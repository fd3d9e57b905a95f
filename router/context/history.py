"""A session's log, read: what of it counts, ready to be sent. Kept between turns, so that a turn costs what is new.

An entry counts once its turn has ended, in the order of turns; those of a turn that failed, or was cut off, never do. A turn
whose end was written late, since the store was away, takes its place among the others.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from router.context.entry import BadEntry, Draft, Entry, Kind, decode, first_link
from router.context.messages import digest
from router.core.canonical import message_segments
from router.core.fingerprint import Chain
from router.core.request import Tenant

REASONING, TEXT = -1, 0
"""Parts of an assistant's message that can be deleted apart from each other; tool calls count from 1."""

ITEM_OVERHEAD_BYTES = 400
"""About what Python needs for one item, beside its text."""


class Item(NamedTuple):
    """One message of the log."""

    number: int
    """Of its entry, from 1."""
    turn: int
    at: float
    tokens: int
    body: bytes
    digest: int
    role: str
    parts: tuple[int, ...] = (TEXT,)
    """What it still has: ``REASONING``, ``TEXT``, and tool calls, numbered from 1 as they were written."""

    @property
    def calls(self) -> tuple[int, ...]:
        return tuple(part for part in self.parts if part > TEXT)

    @property
    def is_answer(self) -> bool:
        return self.role == "assistant"


class Setting(NamedTuple):
    """The system messages, or the tools, that hold: a JSON array, and the entry it came from; 0: none."""

    number: int = 0
    body: bytes = b"[]"

    @property
    def values(self) -> list[Any]:
        values: list[Any] = msgspec.json.decode(self.body)
        return values


@dataclass(slots=True)
class _Turn:
    """Of one that has not ended: ``link`` is what its next entry follows."""

    link: int
    entries: list[tuple[int, Entry]] = field(default_factory=list)


class History:
    """One session's. ``generation`` and ``head`` as in the store; ``add`` raises BadEntry."""

    def __init__(self, sid: str, owner: Tenant, generation: str) -> None:
        self.sid = sid
        self.owner = owner
        self.generation = generation
        self.head = 0
        self.epoch = 0
        self.view: bytes | None = None
        self.items: list[Item] = []
        """All messages that count, in order."""
        self.bodies: list[bytes] = []
        self.digests: list[int] = []
        """Theirs."""
        self.last_answer = -1
        """Where among ``items`` the last message of an assistant stands; -1: nowhere."""
        self.first_user = -1
        """Where the first message of a user stands; -1: nowhere."""
        self.system = Setting()
        self.tools = Setting()
        self.turns = 0
        """The newest turn's number that is known of."""
        self.bytes = 0
        """About what it takes of memory."""
        self.item_bytes = 0
        """The messages' that count, as they were written."""
        self._open: dict[int, _Turn] = {}
        self._newest_turn = 0
        self._system_turn = self._tools_turn = 0
        self._chain: Chain | None = None
        self._chain_key: tuple[object, ...] = ()
        self._runs: list[tuple[int, int]] = []
        self._cut: dict[int, tuple[int, ...]] = {}

    def add(self, tail: Iterable[bytes], first_number: int) -> None:
        """Entries in the log's order, the first of them of that number; those that are known already are passed over."""
        for number, data in enumerate(tail, first_number):
            if number <= self.head:
                continue
            if number != self.head + 1:
                raise BadEntry(f"entry {self.head + 1} is missing")
            self._add(number, decode(data))
            self.head = number

    def link_of(self, turn: int) -> int | None:
        """What the turn's next entry follows; None where it has none yet."""
        return self._open[turn].link if turn in self._open else None

    def unfinished(self, turn: int = 0) -> Sequence[Item]:
        """Messages of turns that have not ended, or of one of them."""
        return [
            _item(number, entry)
            for at in ([turn] if turn else sorted(self._open))
            if at in self._open
            for number, entry in self._open[at].entries
            if entry.kind is Kind.MESSAGE
        ]

    @property
    def last_turn(self) -> int:
        """The newest that has ended; 0: none has."""
        return self._newest_turn

    @property
    def is_empty(self) -> bool:
        return not self.items

    def chain(self, *, model: str, salt: str, scope: str, before: Sequence[bytes]) -> Chain:
        """The fingerprint's, of the segments ``before`` all messages and of all that counts. A copy: what the turn adds goes
        behind it. O(1) while the same stands before."""
        key = (model, salt, scope, *before)
        if self._chain is None or self._chain_key != key:
            self._chain_key = key
            self._chain = Chain(model=model, cache_salt=salt, tenant=scope)
            self._chain.extend(before)
            for item in self.items:
                self._chain.extend(segments_of(item.body))
        return self._chain.copy()

    def runs(self) -> list[tuple[int, int]]:
        """The numbers of all items, as runs without a gap, both ends included."""
        return self._runs[:]

    def cut(self) -> dict[int, tuple[int, ...]]:
        """Of the items that lost a part, by number, the parts that they have."""
        return self._cut.copy()

    def _add(self, number: int, entry: Entry) -> None:
        if entry.owner != self.owner:
            raise BadEntry(f"entry {number} belongs to another owner")
        turn = self._open.get(entry.turn)
        if turn is None:
            turn = self._open[entry.turn] = _Turn(first_link(self.sid, entry.turn))
        if link_behind(turn.link, entry) != entry.link:
            raise BadEntry(f"entry {number} does not follow the entries of its turn before it")
        turn.link = entry.link
        turn.entries.append((number, entry))
        self.bytes += len(bytes(entry.body)) + ITEM_OVERHEAD_BYTES
        if entry.ends:
            del self._open[entry.turn]
            for own_number, own in turn.entries:
                self._count(own_number, own)
            self._newest_turn = max(self._newest_turn, entry.turn)

    def _count(self, number: int, entry: Entry) -> None:
        """From now on the entry is part of what is sent."""
        if entry.kind is Kind.MESSAGE:
            self._count_message(_item(number, entry))
        elif entry.kind is Kind.SYSTEM and entry.turn >= self._system_turn:
            self.system, self._system_turn = Setting(number, bytes(entry.body)), entry.turn
        elif entry.kind is Kind.TOOLS and entry.turn >= self._tools_turn:
            self.tools, self._tools_turn = Setting(number, bytes(entry.body)), entry.turn
        elif entry.kind is Kind.DELETION:
            self._delete(*msgspec.json.decode(entry.body, type=tuple[int, int]))

    def _count_message(self, item: Item) -> None:
        if item.turn >= self._newest_turn:
            self.items.append(item)
            self.bodies.append(item.body)
            self.digests.append(item.digest)
            self.item_bytes += len(item.body)
            _add_to_runs(self._runs, item.number)
            self._mark(len(self.items) - 1)
            if self._chain is not None:
                self._chain.extend(segments_of(item.body))
        else:
            self.items.insert(bisect(self.items, item.turn, key=lambda other: other.turn), item)
            self._on_rearranged()

    def _delete(self, number: int, part: int) -> None:
        """With its last part but its reasoning goes the message."""
        at = next((at for at, item in enumerate(self.items) if item.number == number), None)
        if at is None or part not in self.items[at].parts:
            return
        left = tuple(other for other in self.items[at].parts if other != part)
        if not left or left == (REASONING,):
            del self.items[at]
            self._cut.pop(number, None)
        else:
            self.items[at] = _with_parts(self.items[at], left)
            self._cut[number] = left
        self._on_rearranged()

    def _on_rearranged(self) -> None:
        """Something changed before the last item."""
        self._chain = None
        self.bodies = [item.body for item in self.items]
        self.digests = [item.digest for item in self.items]
        self.item_bytes = sum(map(len, self.bodies))
        self._runs = []
        for item in self.items:
            _add_to_runs(self._runs, item.number)
        self.last_answer = self.first_user = -1
        for at in range(len(self.items)):
            self._mark(at)

    def _mark(self, at: int) -> None:
        """The item there is the newest looked at."""
        role = self.items[at].role
        if role == "assistant":
            self.last_answer = at
        elif role == "user" and self.first_user < 0:
            self.first_user = at


def link_behind(link: int, entry: Entry) -> int:
    """What the entry's link must be, if it follows ``link``."""
    return xxh3_64_intdigest(bytes(entry.body), link)


def segments_of(body: bytes) -> list[bytes]:
    """Canonical ones, of a message's JSON."""
    return message_segments(msgspec.json.decode(body))


def _add_to_runs(runs: list[tuple[int, int]], number: int) -> None:
    if runs and runs[-1][1] == number - 1:
        runs[-1] = (runs[-1][0], number)
    else:
        runs.append((number, number))


def _item(number: int, entry: Entry) -> Item:
    body = bytes(entry.body)
    message = msgspec.json.decode(body)
    return Item(
        number=number,
        turn=entry.turn,
        at=entry.at,
        tokens=entry.tokens,
        body=body,
        digest=digest(message),
        role=str(message.get("role")),
        parts=_parts_of(message),
    )


def _parts_of(message: dict[str, Any]) -> tuple[int, ...]:
    """An assistant's without calls has a text, be it empty; any other's message is one part."""
    calls = tuple(range(1, len(message.get("tool_calls") or ()) + 1))
    if message.get("role") != "assistant":
        return (TEXT, *calls)
    reasoning = (REASONING,) if message.get("reasoning") or message.get("reasoning_content") else ()
    text = (TEXT,) if message.get("content") or message.get("refusal") or not calls else ()
    return (*reasoning, *text, *calls)


def _with_parts(item: Item, parts: tuple[int, ...]) -> Item:
    body = keep_parts(item.body, parts, item.calls)
    return item._replace(body=body, digest=digest(msgspec.json.decode(body)), parts=parts)


def keep_parts(body: bytes, parts: Collection[int], calls: Sequence[int] = ()) -> bytes:
    """The message with only those parts. ``calls``: the numbers of those that it has; none: all that were written."""
    message = msgspec.json.decode(body)
    has = message.pop("tool_calls", None) or []
    left = [call for number, call in zip(calls or range(1, len(has) + 1), has, strict=True) if number in parts]
    dropped = (("content", "refusal") if TEXT not in parts else ()) + (
        ("reasoning", "reasoning_content") if REASONING not in parts else ()
    )
    for name in dropped:
        message.pop(name, None)
    return msgspec.json.encode(message | ({"tool_calls": left} if left else {}))


def drafts_of(items: Sequence[Item], system: Setting, tools: Setting) -> list[Draft]:
    """What a copy of a history begins with."""
    drafts = [Draft(Kind.SYSTEM, system.body)] if system.number else []
    if tools.number:
        drafts.append(Draft(Kind.TOOLS, tools.body))
    return drafts + [Draft(Kind.MESSAGE, item.body, item.tokens) for item in items]
