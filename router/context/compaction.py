"""From one view to the next. Pure: what is sent behind a cut follows from the history, the view and a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from router.context.balance import Cut, choose_cut
from router.context.history import History, Item
from router.context.view import START, Place, Segment, View

MAX_SEGMENTS = 8
"""Beyond, notes are made of the notes: one segment of all."""


class Source(NamedTuple):
    """What notes are to be made of: other notes, which they replace, and items. ``since``: behind which they tell; ``head``:
    the log's, as it was read."""

    since: Place
    upto: Place
    head: int
    notes: Sequence[Segment]
    items: Sequence[Item]

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.notes) + sum(item.tokens for item in self.items)


def find_cut(history: History, low_tokens: int) -> Cut | None:
    """Of what is sent, so that at most about so many tokens are left, notes included. None: nothing can go."""
    notes = sum(segment.tokens for segment in history.view.ready)
    return choose_cut(history.items[history.start :], max(low_tokens - notes, 0), history.question())


def place_of(history: History, cut: Cut) -> Place:
    """The last item's that goes."""
    return history.items[history.start + cut.at - 1].place


def cut_view(history: History, cut: Cut) -> View:
    """Without what goes. Notes that were ready tell of what went before; of the rest it is said how much it was."""
    view, gone = history.view, place_of(history, cut)
    told = view.told
    return replace(
        view,
        cut=gone,
        question=cut.question.place if cut.question is not None else START,
        segments=view.ready,
        pending=[],
        elided=sum(told < item.place <= gone for item in history.items),
    )


def source_of(history: History, upto: Place) -> Source:
    """For notes of all up to there that no notes tell of."""
    view = history.view
    notes = view.ready if len(view.ready) >= MAX_SEGMENTS else ()
    items = [item for item in history.items if view.told < item.place <= upto]
    return Source(notes[0].since if notes else view.told, upto, history.head, notes, items)


def with_notes(history: History, segment: Segment, question: Place) -> View | None:
    """There are notes now. If the history was not cut meanwhile, it is cut where they end, with that ``question`` kept; if it
    was, they wait for the next cut, since a prompt that changes once more is computed once more. None: others have told of
    it, or something that they tell of was deleted."""
    view = replace(history.view, work=None)
    if segment.upto <= view.told or segment.since > view.told or history.is_outdated(segment):
        return None
    waiting = replace(view, pending=[*view.pending, segment])
    if segment.upto <= view.cut:
        return waiting
    return replace(waiting, cut=segment.upto, question=question, segments=waiting.ready, pending=[], elided=0)
