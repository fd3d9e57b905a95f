"""Composes the passages that go beside a question, from what a search found. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from router.sessions.context.provenance import FRAME_CHARS, recalled

LINE_BYTES = 25
"""Bytes around one passage."""

MIN_PASSAGE_BYTES = 65
"""A passage is cut to no fewer bytes."""

MAX_CHARS = 30_000
"""Characters of a text that are searched for an excerpt. Requests wait for it."""

SPEAKERS = frozenset(("user", "assistant", "tool", "function"))
"""Roles that are named. Any other role is shown as somebody, since clients choose roles."""

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*\s*|\n+")


class Found(NamedTuple):
    """An item that a search found. ``role``: its speaker's."""

    number: int
    role: str
    text: str


def compose(found: Sequence[Found], question: str, max_bytes: int, shown_already: Collection[int] = ()) -> str:
    """``found``: best first; shown in the order of the log. ``max_bytes``: of the result, in UTF-8. ``shown_already``: items
    that earlier questions quote. Empty: nothing fits."""
    shown: list[Found] = []
    left = max_bytes - FRAME_CHARS
    for each in found:
        if left < MIN_PASSAGE_BYTES:
            break
        if each.number in shown_already:
            continue
        text = excerpt(each.text, question, left - LINE_BYTES)
        if text:
            role = each.role if each.role in SPEAKERS else "somebody"
            shown.append(each._replace(text=text, role=role))
            left -= _size(text) + LINE_BYTES
    return recalled(sorted(shown)) if shown else ""


def excerpt(text: str, question: str, max_bytes: int) -> str:
    """The run of sentences that has most of the question's words; the first of equals."""
    text = text[:MAX_CHARS].strip()
    if _size(text) <= max_bytes:
        return text
    sentences = _SENTENCE.findall(text)
    sizes = list(map(_size, sentences))
    wanted = _words(question)
    weights = [len(wanted & _words(sentence)) for sentence in sentences]
    best, best_weight = (0, 0), -1
    begin = size = weight = 0
    for end in range(len(sentences)):  # the longest run that ends there
        size += sizes[end]
        weight += weights[end]
        while size > max_bytes:
            size -= sizes[begin]
            weight -= weights[begin]
            begin += 1
        if weight > best_weight and begin <= end:
            best, best_weight = (begin, end + 1), weight
    run = "".join(sentences[best[0] : best[1]]).strip()
    return run or text.encode()[:max_bytes].decode(errors="ignore").strip()


def _size(text: str) -> int:
    """Bytes in UTF-8, by which tokens are estimated."""
    return len(text.encode())


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.casefold()) if len(word) > 3}
