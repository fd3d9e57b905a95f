"""Where a history may be cut: never between a tool call and its result, nor between a question and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from router.sessions.context.item import Item

TOOL_ROLES = frozenset(("tool", "function"))


class Cut(NamedTuple):
    """``at``: number of items that go. ``question``: the user's message that the first remaining item belongs to, which is sent
    although it is cut; None: a question comes first, or nothing remains."""

    at: int
    question: Item | None = None


def balanced_cuts(items: Sequence[Item], question: Item | None = None) -> list[Cut]:
    """All cuts that may be made, earliest first. ``question``: the one that the first items belong to, if they begin within an
    answer. The work of an agent on one question may be cut between two of its steps; the question stays."""
    reaches = _reach_of_calls(items)
    cuts, reach = [], -1
    for at, item in enumerate(items):
        if at > reach and at and _may_begin(item, items[at - 1]):
            cuts.append(Cut(at, None if item.role == "user" else question))
        reach = max(reach, reaches[at])
        question = item if item.role == "user" else question
    if items and len(items) > reach and items[-1].role == "assistant":
        cuts.append(Cut(len(items)))
    return cuts


MIN_KEPT_SHARE = 0.5
"""A cut before a question is preferred if it leaves at least this share of what it may."""


def choose_cut(items: Sequence[Item], keep_tokens: int, question: Item | None = None) -> Cut | None:
    """The earliest cut that leaves at most so many tokens, preferably before a question; else the latest. None: there is
    nowhere to cut."""
    cuts = balanced_cuts(items, question) or _between_users(items)
    left = _tokens_after(items)
    fitting = [cut for cut in cuts if left[cut.at] + (cut.question.tokens if cut.question else 0) <= keep_tokens]
    at_questions = [
        cut
        for cut in fitting
        if cut.question is None and cut.at < len(items) and left[cut.at] >= MIN_KEPT_SHARE * keep_tokens
    ]
    return next(iter(at_questions or fitting), cuts[-1] if cuts else None)


def _between_users(items: Sequence[Item]) -> list[Cut]:
    """Cuts between a user's messages, for histories without answers."""
    return [Cut(at) for at in range(1, len(items)) if items[at].role == items[at - 1].role == "user"]


def _may_begin(item: Item, before: Item) -> bool:
    if item.role == "user":
        return before.role != "user"
    return item.role == "assistant" and before.role != "user"


def _tokens_after(items: Sequence[Item]) -> list[int]:
    left = [0] * (len(items) + 1)
    for at in range(len(items) - 1, -1, -1):
        left[at] = left[at + 1] + items[at].tokens
    return left


def _reach_of_calls(items: Sequence[Item]) -> list[int]:
    """For each item, the index of the last item that must stay with it. A tool call reaches to its result, and an open call to
    the end, until a user speaks."""
    reach = list(range(len(items)))
    open_calls: dict[str, int] = {}
    for at, item in enumerate(items):
        if item.role == "assistant":
            for call in _message(item).get("tool_calls") or ():
                open_calls[_id(call, "id")] = at
        elif item.role in TOOL_ROLES:
            began = open_calls.pop(_id(_message(item), "tool_call_id"), None)
            if began is not None:
                reach[began] = at
        elif item.role == "user":
            open_calls.clear()
    for began in open_calls.values():
        reach[began] = len(items)
    return reach


def _message(item: Item) -> dict[str, Any]:
    message: dict[str, Any] = msgspec.json.decode(item.body)
    return message


def _id(holder: Any, name: str) -> str:
    return str(holder.get(name)) if isinstance(holder, dict) else ""
