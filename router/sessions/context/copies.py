"""What a copy of a session begins with: the messages that count, as one turn, and of the view what still holds."""

from __future__ import annotations

from bisect import bisect
from typing import NamedTuple

from msgspec.structs import replace

from router.sessions.context.entry import Draft, Kind
from router.sessions.context.history import History
from router.sessions.context.view import START, WHOLE, LogPosition, Segment, View

TURN = 1
"""All of a copy is."""


class Copy(NamedTuple):
    drafts: list[Draft]
    view: View


def copy_of(history: History, end: int) -> Copy:
    """Of the first ``end`` items, with the system messages and tools that hold now."""
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
    if history.start > end:  # the cut lies behind it: how the rest would be cut was never asked
        return Copy(drafts, replace(WHOLE, overrides=history.view.overrides))
    return Copy(drafts, _moved(history.view, [item.place for item in items], places))


def _moved(view: View, before: list[LogPosition], now: list[LogPosition]) -> View:
    """The same of items that have other places. Who writes notes of the old ones writes none of these."""

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
