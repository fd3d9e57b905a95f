"""What goes beside a question of what a search found: the passages that matter most, within so many characters. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from router.context.provenance import FRAME_CHARS, recalled

LINE_CHARS = 25
"""Of a passage, beside what it says."""

LEAST_CHARS = 65
"""Less of a passage says nothing."""

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*\s*|\n+")


class Found(NamedTuple):
    """An item that a search found. ``role``: whose it is."""

    number: int
    role: str
    text: str


def compose(found: Sequence[Found], question: str, max_chars: int, shown_already: Collection[int] = ()) -> str:
    """``found``: best first; shown in the order in which they were said. ``max_chars``: of all of it. ``shown_already``: items
    that the prompt has from an earlier question. Empty: nothing fits."""
    shown: list[Found] = []
    left = max_chars - FRAME_CHARS
    for each in found:
        if left < LEAST_CHARS:
            break
        if each.number in shown_already:
            continue
        text = excerpt(each.text, question, left - LINE_CHARS)
        if text:
            shown.append(each._replace(text=text))
            left -= len(text) + LINE_CHARS
    return recalled(sorted(shown)) if shown else ""


def excerpt(text: str, question: str, max_chars: int) -> str:
    """Of a text that is too long, the run of sentences that has most of the question's words."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    sentences = _SENTENCE.findall(text)
    wanted = _words(question)
    weights = [len(wanted & _words(sentence)) for sentence in sentences]
    best, best_weight = (0, 0), -1
    for begin in range(len(sentences)):
        size = weight = 0
        end = begin
        while end < len(sentences) and size + len(sentences[end]) <= max_chars:
            size += len(sentences[end])
            weight += weights[end]
            end += 1
        if weight > best_weight and end > begin:
            best, best_weight = (begin, end), weight
    run = "".join(sentences[best[0] : best[1]]).strip()
    return run or text[:max_chars].strip()


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.casefold()) if len(word) > 3}
