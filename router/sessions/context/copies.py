"""The beginning of a session's copy: the messages that count, as one turn, and the view as far as it still holds."""

from __future__ import annotations

from bisect import bisect
from typing import NamedTuple

from msgspec.structs import replace

from router.sessions.context.entry import Draft, Kind
from router.sessions.context.history import History
from router.sessions.context.view import START, WHOLE, LogPosition, Segment, View

TURN = 1
"""The turn that a copy's messages are in."""


class Copy(NamedTuple):
    drafts: list[Draft]
    view: View


def copy_of(history: History, end: int) -> Copy:
    """A copy of the first ``end`` items, with the system messages and tools that hold now."""
    system, tools, items = history.log.system, history.log.tools, history.items[:end]
    drafts = [Draft(Kind.SYSTEM, system.body, system.tokens)] if system.number else []
    if tools.number:
        drafts.append(Draft(Kind.TOOLS, tools.body, tools.tokens))
    places = []
    for item in items:
        if item.recall is not None:
            drafts.append(Draft(Kind.RECALL, item.recall[1], item.recall_tokens))
        drafts.append(Draft(Kind.MESSAGE, item.body, item.tokens - item.recall_tokens))
        places.append(LogPosition(TURN, len(drafts)))
    if history.start > end:  # the cut is after the end, and nobody asked how the rest is to be cut
        return Copy(drafts, replace(WHOLE, overrides=history.view.overrides))
    return Copy(drafts, _moved(history.view, [item.place for item in items], places))


def _moved(view: View, before: list[LogPosition], now: list[LogPosition]) -> View:
    """The view with positions of the copy's items. Work on summaries is dropped: it belongs to the original."""

    def moved(place: LogPosition) -> LogPosition:
        at = bisect(before, place)
        return now[at - 1] if at else START

    head = now[-1].number if now else 0

    def moved_all(segments: list[Segment]) -> list[Segment]:
        return [replace(each, since=moved(each.since), upto=moved(each.upto), head=head) for each in segments]

    return replace(
        view,
        cut=moved(view.cut),
        question=moved(view.question),
        segments=moved_all(view.segments),
        pending=moved_all(view.pending),
        work=None,
    )
