"""The part of a session's log that is sent, under its view. Kept between turns, so that a turn costs what is new."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from router.core.index.fingerprint import Chain
from router.core.request.request import Tenant
from router.sessions.context.item import Item, segments_of
from router.sessions.context.log import Log, position_of_item
from router.sessions.context.view import START, WHOLE, LogPosition, Segment, View


class Sent(NamedTuple):
    """A turn as it was sent. ``shape``: its prompt's."""

    turn: int
    model: str
    worker: str
    shape: bytes


class History:
    """The log of one session and its projection by the view. ``generation`` as in the store."""

    def __init__(self, sid: str, owner: Tenant, generation: str) -> None:
        self.sid = sid
        self.owner = owner
        self.generation = generation
        self.log = Log(sid, owner)
        self.view = WHOLE
        self.epoch = 0
        self.start = 0
        """Index of the first item that is sent."""
        self.preface: list[bytes] = []
        """Messages that are sent instead of the items before ``start``: their system messages, and the view's summaries."""
        self.bodies: list[bytes] = []
        """The items that are sent, as they are sent."""
        self.tokens = 0
        """Tokens of ``bodies`` and of the view's summaries: all that a cut can make less."""
        self.preface_tokens = 0
        """Tokens of the view's summaries."""
        self.aside_tokens = 0
        """Tokens of the system messages before ``start``. They are sent although what stands around them is cut."""
        self.cut_tokens = 0
        """Tokens of the items that are not sent."""
        self.runs: list[tuple[int, int]] = []
        """Numbers of the entries that are sent, as runs without a gap, both ends included."""
        self.sent: Sent | None = None
        """The newest turn that this replica sent to a worker, and that ended well."""
        self.turns = 0
        """The newest turn's number that is known of."""
        self.indexed = 0
        """Items up to this number are known to be searchable."""
        self.is_deleted = False
        """The session is gone: nothing of it may be added to what is kept elsewhere."""
        self._chain: Chain | None = None
        self._chain_key: tuple[object, ...] = ()

    def __repr__(self) -> str:
        return f"<History of {self.log!r} epoch={self.epoch} start={self.start} tokens={self.tokens}>"

    @property
    def items(self) -> list[Item]:
        """All messages that count, in order."""
        return self.log.items

    @property
    def head(self) -> int:
        return self.log.head

    def add(self, tail: Iterable[bytes], first_number: int) -> None:
        """As of ``Log``."""
        log = self.log
        items, deletions, rearranged = len(log.items), len(log.deletions), log.rearranged
        try:
            log.add(tail, first_number)
        finally:
            if len(log.deletions) != deletions:
                self._drop_outdated()
                self.indexed = 0
            if log.rearranged != rearranged or any(item.place <= self.view.cut for item in log.items[items:]):
                self._project()
            else:
                self._append(log.items[items:])

    def use_view(self, view: View, epoch: int) -> None:
        """Send what this view says, unless a newer one is in use. O(1) where the same is sent, else O(what is sent)."""
        if epoch < self.epoch:
            return
        before, self.view, self.epoch = self.view, view, epoch
        self._drop_outdated()
        if _sent_by(self.view) != _sent_by(before):
            self._project()

    def is_outdated(self, segment: Segment) -> bool:
        """An item that it summarises was deleted since it was read."""
        return any(map(segment.covers, self.log.deletions))

    def question(self) -> Item | None:
        """The item before the cut that is sent although it was cut."""
        return self.log.find(self.view.question) if self.view.question != START else None

    def chain(self, *, model: str, salt: str, scope: str, before: Sequence[bytes]) -> Chain:
        """The fingerprint of the segments ``before`` and of all that is sent: a copy, to which a turn adds its own segments.
        O(1) while the same stands before."""
        key = (model, salt, scope, *before)
        if self._chain is None or self._chain_key != key:
            self._chain_key = key
            self._chain = Chain(model=model, cache_salt=salt, tenant=scope)
            self._chain.extend(before)
            for body in (*self.preface, *self.bodies):
                self._chain.extend(segments_of(body))
        return self._chain.copy()

    def _drop_outdated(self) -> None:
        """Summaries of deleted items go."""
        left = self.view.without(self.log.deletions)
        if left is not self.view:
            omitted = sum(left.summarized_upto < item.place <= left.cut for item in self.items)
            self.view = replace(left, omitted=omitted)

    def _project(self) -> None:
        """Anew, from the log and the view."""
        self._chain = None
        self.start = bisect(self.items, self.view.cut, key=position_of_item)
        before, question = self.items[: self.start], self.question()
        asides = list({item.digest: item for item in reversed(before) if item.is_system}.values())[::-1]
        self.preface = [aside.sent for aside in asides]
        self.preface += self.view.preface(question.body if question is not None else None)
        self.aside_tokens = sum(aside.tokens for aside in asides)
        self.preface_tokens = self.view.tokens + (question.tokens if question is not None else 0)
        self.cut_tokens = sum(item.tokens for item in before if not item.is_system)
        self.tokens = self.preface_tokens
        self.bodies, self.runs = [], []
        self._append(self.items[self.start :])

    def _append(self, items: Iterable[Item]) -> None:
        for item in items:
            self.bodies.append(item.sent)
            self.tokens += item.tokens
            if item.recall is not None:
                _add_to_runs(self.runs, item.recall[0])
            _add_to_runs(self.runs, item.number)
            if self._chain is not None:
                self._chain.extend(segments_of(item.sent))


def _add_to_runs(runs: list[tuple[int, int]], number: int) -> None:
    if runs and runs[-1][1] == number - 1:
        runs[-1] = (runs[-1][0], number)
    else:
        runs.append((number, number))


def _sent_by(view: View) -> tuple[LogPosition, list[Segment], int]:
    """The members that make a difference to the prompt."""
    return view.cut, view.segments, view.omitted
