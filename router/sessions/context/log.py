"""A session's log, read: the messages, system messages and tools that count.

An entry counts once its turn has ended. Turns count in their order; entries of a turn that failed never count. A turn whose end
was written late, because the store was away, takes its place among the others.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from router.core.request.request import Tenant
from router.sessions.context.entry import BadEntry, Draft, Entry, Kind, decode, first_link
from router.sessions.context.item import REASONING, Item, read_item
from router.sessions.context.view import Deletion, LogPosition

ITEM_OVERHEAD_BYTES = 400
"""Memory of one item beside its text, about."""


class Setting(NamedTuple):
    """The system messages, or the tools, that hold: a JSON array, and the number of its entry; 0: there is none."""

    number: int = 0
    body: bytes = b"[]"
    tokens: int = 0

    @property
    def values(self) -> list[Any]:
        values: list[Any] = msgspec.json.decode(self.body)
        return values


@dataclass(slots=True)
class _OpenTurn:
    """A turn that has not ended. ``link``: what its next entry follows."""

    link: int
    entries: list[tuple[int, Entry]] = field(default_factory=list)


class Log:
    """The log of one session. It only grows, by ``add``."""

    def __init__(self, sid: str, owner: Tenant) -> None:
        self.head = 0
        """Number of the last entry."""
        self.items: list[Item] = []
        """All messages that count, in order."""
        self.digests: list[int] = []
        """The items' digests."""
        self.rearranged = 0
        """How often something changed before the last item."""
        self.deletions: list[Deletion] = []
        self.parts_left: dict[int, tuple[int, ...]] = {}
        """For items that lost a part, by number: the parts that are left."""
        self.system = Setting()
        self.tools = Setting()
        self.last_turn = 0
        """The newest turn that has ended; 0: none has."""
        self.bytes = 0
        """Memory that it takes, about."""
        self.item_bytes = 0
        """Bytes of the messages that count, as they were written."""
        self._sid = sid
        self._owner = owner
        self._open: dict[int, _OpenTurn] = {}
        self._system_turn = self._tools_turn = 0

    def __repr__(self) -> str:
        return f"<Log {self._sid} head={self.head} items={len(self.items)} open={sorted(self._open)}>"

    def add(self, tail: Iterable[bytes], first_number: int) -> None:
        """Entries in order, the first of them of that number. Known entries are skipped. Raises BadEntry."""
        for number, data in enumerate(tail, first_number):
            if number <= self.head:
                continue
            if number != self.head + 1:
                raise BadEntry(f"entry {self.head + 1} is missing")
            self._add(number, decode(data))
            self.head = number

    def link_of(self, turn: int) -> int | None:
        """The link that the turn's next entry follows; None where the turn has no entry, or has ended."""
        return self._open[turn].link if turn in self._open else None

    def unfinished(self, turn: int = 0) -> Sequence[Item]:
        """Messages of turns that have not ended; ``turn``: of this one alone."""
        return [
            read_item(number, entry)
            for at in ([turn] if turn else sorted(self._open))
            if at in self._open
            for number, entry in self._open[at].entries
            if entry.kind is Kind.MESSAGE
        ]

    def find(self, place: LogPosition) -> Item | None:
        at = bisect(self.items, place, key=position_of_item) - 1
        return self.items[at] if at >= 0 and self.items[at].place == place else None

    @property
    def last_answer(self) -> int:
        """Index of the last message of an assistant among ``items``; -1: there is none."""
        return next((at for at in range(len(self.items) - 1, -1, -1) if self.items[at].role == "assistant"), -1)

    @property
    def first_user(self) -> int:
        """Index of the first message of a user among ``items``; -1: there is none."""
        return next((at for at, item in enumerate(self.items) if item.role == "user"), -1)

    @property
    def is_empty(self) -> bool:
        return not self.items

    def _add(self, number: int, entry: Entry) -> None:
        if entry.owner != self._owner:
            raise BadEntry(f"entry {number} belongs to another owner")
        turn = self._open.get(entry.turn)
        if turn is None:
            turn = self._open[entry.turn] = _OpenTurn(first_link(self._sid, entry.turn))
        if link_after(turn.link, entry) != entry.link:
            raise BadEntry(f"entry {number} does not follow the entries of its turn before it")
        turn.link = entry.link
        turn.entries.append((number, entry))
        self.bytes += len(bytes(entry.body)) + ITEM_OVERHEAD_BYTES
        if entry.ends:
            del self._open[entry.turn]
            self._count_turn(turn.entries)
            self.last_turn = max(self.last_turn, entry.turn)

    def _count_turn(self, entries: Iterable[tuple[int, Entry]]) -> None:
        recall: tuple[int, Entry] | None = None
        for number, entry in entries:
            if entry.kind is Kind.RECALL:
                recall = (number, entry)
            elif entry.kind is Kind.MESSAGE:
                self._count_message(read_item(number, entry, recall))
                recall = None
            else:
                self._count(number, entry)

    def _count(self, number: int, entry: Entry) -> None:
        """From now on the entry holds."""
        if entry.kind is Kind.SYSTEM and entry.turn >= self._system_turn:
            self.system, self._system_turn = Setting(number, bytes(entry.body), entry.tokens), entry.turn
        elif entry.kind is Kind.TOOLS and entry.turn >= self._tools_turn:
            self.tools, self._tools_turn = Setting(number, bytes(entry.body), entry.tokens), entry.turn
        elif entry.kind is Kind.DELETION:
            self._delete(number, *msgspec.json.decode(entry.body, type=tuple[int, int]))

    def _count_message(self, item: Item) -> None:
        if item.turn >= self.last_turn:
            self.items.append(item)
            self.digests.append(item.digest)
            self.item_bytes += len(item.body)
        else:
            self.items.insert(bisect(self.items, item.place, key=position_of_item), item)
            self._rearrange()

    def _delete(self, entry: int, number: int, part: int) -> None:
        """Delete one part of an item. An item of which nothing but reasoning is left goes, and so does each recalled text
        that quotes it."""
        at = next((at for at, item in enumerate(self.items) if item.number == number), None)
        if at is None or part not in self.items[at].parts:
            return
        self.deletions.append(Deletion(entry, self.items[at].place))
        left = tuple(other for other in self.items[at].parts if other != part)
        if not left or left == (REASONING,):
            del self.items[at]
            self.parts_left.pop(number, None)
        else:
            self.items[at] = self.items[at].with_parts(left)
            self.parts_left[number] = left
        self.items = [item.not_recalling(number) for item in self.items]
        self._rearrange()

    def _rearrange(self) -> None:
        self.rearranged += 1
        self.digests = [item.digest for item in self.items]
        self.item_bytes = sum(len(item.body) for item in self.items)


def link_after(link: int, entry: Entry) -> int:
    """The link that the entry must have, if it follows ``link``."""
    return xxh3_64_intdigest(bytes(entry.body), link)


def size_of(drafts: Iterable[Draft]) -> int:
    """Memory that the drafts take as items, about."""
    return sum(len(draft.body) + ITEM_OVERHEAD_BYTES for draft in drafts)


def position_of_item(item: Item) -> LogPosition:
    return item.place
