"""A session's log, read: what of it counts, ready to be sent. Kept between turns, so that a turn costs what is new.

An entry counts once its turn has ended, in the order of turns; those of a turn that failed, or was cut off, never do. A turn
whose end was written late, since the store was away, takes its place among the others.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace
from xxhash import xxh3_64_intdigest

from router.core.index.fingerprint import Chain
from router.core.request.canonical import message_segments
from router.core.request.request import Tenant
from router.sessions.context.entry import BadEntry, Entry, Kind, decode, first_link
from router.sessions.context.messages import SYSTEM_ROLES, digest
from router.sessions.context.provenance import recalled_numbers
from router.sessions.context.view import START, WHOLE, Deletion, LogPosition, Segment, View, with_text_before

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
    sent: bytes
    """The body, with what was recalled for it."""
    recall: tuple[int, bytes] | None = None
    """That, and the number of its entry."""
    recall_tokens: int = 0
    """Of it, among ``tokens``."""
    parts: tuple[int, ...] = (TEXT,)
    """What it still has: ``REASONING``, ``TEXT``, and tool calls, numbered from 1 as they were written."""

    @property
    def calls(self) -> tuple[int, ...]:
        return tuple(part for part in self.parts if part > TEXT)

    @property
    def place(self) -> LogPosition:
        return LogPosition(self.turn, self.number)

    @property
    def is_system(self) -> bool:
        """It stays when others are cut."""
        return self.role in SYSTEM_ROLES


class Setting(NamedTuple):
    """The system messages, or the tools, that hold: a JSON array, and the entry it came from; 0: none."""

    number: int = 0
    body: bytes = b"[]"
    tokens: int = 0

    @property
    def values(self) -> list[Any]:
        values: list[Any] = msgspec.json.decode(self.body)
        return values


class Sent(NamedTuple):
    """A turn as it was sent. ``shape``: its prompt's."""

    turn: int
    model: str
    worker: str
    shape: bytes


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
        self.view = WHOLE
        self.items: list[Item] = []
        """All messages that count, in order."""
        self.digests: list[int] = []
        """Theirs."""
        self.start = 0
        """Where among ``items`` those begin that the view sends."""
        self.preface: list[bytes] = []
        """What is sent instead of those before: their system messages, and what the view says."""
        self.bodies: list[bytes] = []
        """What is sent of the items."""
        self.tokens = 0
        """Of these, and of what the view says: all that a cut can make less."""
        self.last_answer = -1
        """Where among ``items`` the last message of an assistant stands; -1: nowhere."""
        self.first_user = -1
        """Where the first message of a user stands; -1: nowhere."""
        self.system = Setting()
        self.tools = Setting()
        self.sent: Sent | None = None
        """The newest turn that this replica sent to a worker, and that ended well."""
        self.cut_tokens = 0
        """Of the items that are not sent."""
        self.is_deleted = False
        """With its session; whoever still has it adds nothing to what is kept elsewhere."""
        self.indexed = 0
        """Up to that number this replica is known to have made items searchable."""
        self.aside_tokens = 0
        """Of the system messages that were said in the midst of what was cut: they are sent all the same."""
        self.preface_tokens = 0
        """Of what the view says."""
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
        self._deletions: list[Deletion] = []

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

    def tokens_of(self, turn: int) -> int:
        """Of a turn among the newest: its question and its answer. O(its items)."""
        newest = takewhile(lambda item: item.turn >= turn, reversed(self.items))
        return sum(item.tokens for item in newest if item.turn == turn)

    @property
    def last_turn(self) -> int:
        """The newest that has ended; 0: none has."""
        return self._newest_turn

    @property
    def is_empty(self) -> bool:
        return not self.items

    def use_view(self, view: View, epoch: int) -> None:
        """From now on that is sent, unless a newer one is. O(what it sends), where it sends something else."""
        if epoch < self.epoch:
            return
        before, self.view, self.epoch = self.view, view, epoch
        self._forget_notes()
        if _sent_by(self.view) != _sent_by(before):
            self._on_rearranged()

    def is_outdated(self, segment: Segment) -> bool:
        """What it tells of was deleted since it was read."""
        return any(map(segment.covers, self._deletions))

    def question(self) -> Item | None:
        """The item before the cut that is sent all the same."""
        return self._at(self.view.question) if self.view.question != START else None

    def chain(self, *, model: str, salt: str, scope: str, before: Sequence[bytes]) -> Chain:
        """The fingerprint's, of the segments ``before`` the history and of all that is sent of it. A copy: what the turn adds
        goes behind it. O(1) while the same stands before."""
        key = (model, salt, scope, *before)
        if self._chain is None or self._chain_key != key:
            self._chain_key = key
            self._chain = Chain(model=model, cache_salt=salt, tenant=scope)
            self._chain.extend(before)
            for body in (*self.preface, *self.bodies):
                self._chain.extend(segments_of(body))
        return self._chain.copy()

    def runs(self) -> list[tuple[int, int]]:
        """The numbers of the entries that are sent, as runs without a gap, both ends included."""
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
            self._count_turn(turn.entries)
            self._newest_turn = max(self._newest_turn, entry.turn)

    def _count_turn(self, entries: Iterable[tuple[int, Entry]]) -> None:
        recall: tuple[int, Entry] | None = None
        for number, entry in entries:
            if entry.kind is Kind.RECALL:
                recall = (number, entry)
            elif entry.kind is Kind.MESSAGE:
                self._count_message(_item(number, entry, recall))
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
        if item.turn >= self._newest_turn:
            self.items.append(item)
            self.digests.append(item.digest)
            self.item_bytes += len(item.body)
            self._mark(len(self.items) - 1)
            if item.place <= self.view.cut:
                self._on_rearranged()
                return
            self._send(item)
            if self._chain is not None:
                self._chain.extend(segments_of(item.sent))
        else:
            self.items.insert(bisect(self.items, item.place, key=_place), item)
            self._on_rearranged()

    def _asides(self) -> list[Item]:
        """The system messages before the cut, each once, in the order in which they were first said."""
        return list({item.digest: item for item in reversed(self.items[: self.start]) if item.is_system}.values())[::-1]

    def _delete(self, entry: int, number: int, part: int) -> None:
        """With its last part but its reasoning goes the message; and with both what tells of it, or repeats it."""
        at = next((at for at, item in enumerate(self.items) if item.number == number), None)
        if at is None or part not in self.items[at].parts:
            return
        self._deletions.append(Deletion(entry, self.items[at].place))
        left = tuple(other for other in self.items[at].parts if other != part)
        if not left or left == (REASONING,):
            del self.items[at]
            self._cut.pop(number, None)
        else:
            self.items[at] = _with_parts(self.items[at], left)
            self._cut[number] = left
        self.items = [_not_recalling(item, number) for item in self.items]
        self._forget_notes()
        self.indexed = 0
        self._on_rearranged()

    def _forget_notes(self) -> None:
        """Those that tell of what was deleted."""
        left = self.view.without(self._deletions)
        if left is not self.view:
            omitted = sum(left.told < item.place <= left.cut for item in self.items)
            self.view = replace(left, omitted=omitted)

    def _on_rearranged(self) -> None:
        """Something changed before the last item."""
        self._chain = None
        self.digests = [item.digest for item in self.items]
        self.start = bisect(self.items, self.view.cut, key=_place)
        question = self.question()
        asides = self._asides()
        self.preface = [aside.sent for aside in asides]
        self.preface += self.view.preface(question.body if question is not None else None)
        self.aside_tokens = sum(aside.tokens for aside in asides)
        self.preface_tokens = self.view.tokens + (question.tokens if question is not None else 0)
        self.tokens = self.preface_tokens
        self.cut_tokens = sum(item.tokens for item in self.items[: self.start] if not item.is_system)
        self.bodies, self._runs = [], []
        for item in self.items[self.start :]:
            self._send(item)
        self.item_bytes = sum(len(item.body) for item in self.items)
        self.last_answer = self.first_user = -1
        for at in range(len(self.items)):
            self._mark(at)

    def _send(self, item: Item) -> None:
        """Behind what is sent already."""
        self.bodies.append(item.sent)
        self.tokens += item.tokens
        if item.recall is not None:
            _add_to_runs(self._runs, item.recall[0])
        _add_to_runs(self._runs, item.number)

    def _at(self, place: LogPosition) -> Item | None:
        at = bisect(self.items, place, key=_place) - 1
        return self.items[at] if at >= 0 and self.items[at].place == place else None

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


def _sent_by(view: View) -> tuple[LogPosition, list[Segment], int]:
    """What of it makes a difference to the prompt."""
    return view.cut, view.segments, view.omitted


def _not_recalling(item: Item, number: int) -> Item:
    """Without what was recalled for it, where the item of that number is in it."""
    if item.recall is None or number not in recalled_numbers(msgspec.json.decode(item.recall[1], type=str)):
        return item
    return item._replace(sent=item.body, recall=None, tokens=item.tokens - item.recall_tokens, recall_tokens=0)


def _place(item: Item) -> LogPosition:
    return item.place


def _item(number: int, entry: Entry, recall: tuple[int, Entry] | None = None) -> Item:
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


def with_recalled(body: bytes, recall: bytes) -> bytes:
    """The message with what was recalled for it, which is a JSON string, as it is sent."""
    return with_text_before(body, msgspec.json.decode(recall, type=str))


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
    sent = body if item.recall is None else with_recalled(body, item.recall[1])
    return item._replace(body=body, sent=sent, digest=digest(msgspec.json.decode(body)), parts=parts)


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
