"""From one view to the next. Pure: what is sent behind a cut follows from the history, the view and a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from msgspec.structs import replace

from router.sessions.context.cut_points import Cut, choose_cut
from router.sessions.context.history import History
from router.sessions.context.item import Item
from router.sessions.context.view import START, LogPosition, Segment, View, summary_tokens

MAX_SEGMENTS, MAX_NOTES_SHARE = 8, 0.34
"""Beyond so many, or such a share of the low mark, notes are made of the notes: one segment of all. They would leave no room
for what was said last."""

ANY = 1 << 40


class Source(NamedTuple):
    """What notes are to be made of: other notes, which they replace, and items. ``since``: behind which they tell; ``head``:
    the log's, as it was read."""

    since: LogPosition
    upto: LogPosition
    head: int
    notes: Sequence[Segment]
    items: Sequence[Item]

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.notes) + sum(item.tokens for item in self.items)


def find_cut(history: History, low_tokens: int) -> Cut | None:
    """Of what is sent, so that at most about so many tokens are left, notes included. None: nothing can go."""
    keep_tokens = max(low_tokens - summary_tokens(history.view.ready), 0)
    return choose_cut(history.items[history.start :], keep_tokens, history.question())


def place_of(history: History, cut: Cut) -> LogPosition:
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
        omitted=sum(told < item.place <= gone for item in history.items if not item.is_system),
    )


def source_of(history: History, upto: LogPosition, *, low_tokens: int = ANY, max_tokens: int = ANY) -> Source:
    """For notes of all up to there that no notes tell of; of the first of it, if it has more than ``max_tokens``.
    ``low_tokens``: what a cut leaves, of which notes may take a share."""
    view = history.view
    is_crowded = len(view.ready) >= MAX_SEGMENTS or summary_tokens(view.ready) > MAX_NOTES_SHARE * low_tokens
    notes = view.ready if is_crowded and len(view.ready) > 1 else ()
    items = [item for item in history.items if view.told < item.place <= upto and not item.is_system]
    sums = accumulate((item.tokens for item in items), initial=sum(segment.tokens for segment in notes))
    first = max(sum(total <= max_tokens for total in sums) - 1, 1)
    if first < len(items):
        items = items[:first]
        upto = items[-1].place
    return Source(notes[0].since if notes else view.told, upto, history.head, notes, items)


def with_notes(history: History, segment: Segment, question: LogPosition) -> View | None:
    """There are notes now. If the history was not cut meanwhile, it is cut where they end, with that ``question`` kept; if it
    was, they wait for the next cut, since a prompt that changes once more is computed once more. None: others have told of
    it, or something that they tell of was deleted."""
    view = replace(history.view, work=None)
    if segment.upto <= view.told or segment.since > view.told or history.is_outdated(segment):
        return None
    waiting = replace(view, pending=[*view.pending, segment])
    if segment.upto <= view.cut:
        return waiting
    return replace(waiting, cut=segment.upto, question=question, segments=waiting.ready, pending=[], omitted=0)
