"""From one view to the next. Pure: a cut follows from the history, its view and a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from msgspec.structs import replace

from router.sessions.context.cut_points import Cut, choose_cut
from router.sessions.context.history import History
from router.sessions.context.item import Item
from router.sessions.context.view import START, LogPosition, Segment, View, summary_tokens

MAX_SEGMENTS, MAX_SUMMARY_SHARE = 8, 0.34
"""Beyond so many segments, or such a share of the low watermark, all are summarised into one: they would leave no room for what
was said last."""

ANY = 1 << 40


class Source(NamedTuple):
    """The source of a summary: earlier summaries, which it replaces, and items. ``since``: the position that it starts after.
    ``head``: of the log, as it was read."""

    since: LogPosition
    upto: LogPosition
    head: int
    summaries: Sequence[Segment]
    items: Sequence[Item]

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.summaries) + sum(item.tokens for item in self.items)


def find_cut(history: History, low_tokens: int) -> Cut | None:
    """The cut that leaves about ``low_tokens`` at most, summaries included. None: nothing can go."""
    keep_tokens = max(low_tokens - summary_tokens(history.view.ready), 0)
    return choose_cut(history.items[history.start :], keep_tokens, history.question())


def place_of(history: History, cut: Cut) -> LogPosition:
    """The position of the last item that goes."""
    return history.items[history.start + cut.at - 1].place


def cut_view(history: History, cut: Cut) -> View:
    """The view after the cut. It shows the summaries that are ready, and counts the messages that none covers."""
    view, gone = history.view, place_of(history, cut)
    upto = view.summarized_upto
    return replace(
        view,
        cut=gone,
        question=cut.question.place if cut.question is not None else START,
        segments=view.ready,
        pending=[],
        omitted=sum(upto < item.place <= gone for item in history.items if not item.is_system),
    )


def source_of(history: History, upto: LogPosition, *, low_tokens: int = ANY, max_tokens: int = ANY) -> Source:
    """The source of a summary of all items up to there that have none; of their first part, if they have more than
    ``max_tokens``. ``low_tokens``: what a cut leaves, of which summaries may take a share."""
    view = history.view
    is_crowded = len(view.ready) >= MAX_SEGMENTS or summary_tokens(view.ready) > MAX_SUMMARY_SHARE * low_tokens
    summaries = view.ready if is_crowded and len(view.ready) > 1 else ()
    items = [item for item in history.items if view.summarized_upto < item.place <= upto and not item.is_system]
    sums = accumulate((item.tokens for item in items), initial=sum(segment.tokens for segment in summaries))
    first = max(sum(total <= max_tokens for total in sums) - 1, 1)
    if first < len(items):
        items = items[:first]
        upto = items[-1].place
    return Source(summaries[0].since if summaries else view.summarized_upto, upto, history.head, summaries, items)


def with_summary(history: History, segment: Segment, question: LogPosition) -> View | None:
    """The view with a new summary. If the history was not cut meanwhile, it is cut where the summary ends, and keeps that
    ``question``. If it was, the summary waits for the next cut, since each change of a prompt makes it be computed anew. None:
    others have summarised it, or an item of it was deleted."""
    view = replace(history.view, work=None)
    if segment.upto <= view.summarized_upto or segment.since > view.summarized_upto or history.is_outdated(segment):
        return None
    waiting = replace(view, pending=[*view.pending, segment])
    if segment.upto <= view.cut:
        return waiting
    return replace(waiting, cut=segment.upto, question=question, segments=waiting.ready, pending=[], omitted=0)
