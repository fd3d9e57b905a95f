"""Which words a text is found by. Pure."""

from __future__ import annotations

import re

MAX_QUERY_WORDS = 64

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
"""Scripts that put no space between words: Han and kana."""


def spaced(text: str) -> str:
    """The text as an index should read it: where a script puts no space between words, each two neighbouring characters
    are one, and NUL is a space."""
    return _UNSPACED.sub(_pairs, text.replace("\0", " "))


def query_words(query: str) -> list[str]:
    """Letters and digits only; each once, in the order in which they come, MAX_QUERY_WORDS at most."""
    return list(dict.fromkeys(_WORD.findall(spaced(query).lower())))[:MAX_QUERY_WORDS]


def _pairs(run: re.Match[str]) -> str:
    characters = run[0]
    if len(characters) == 1:
        return f" {characters} "
    return " " + " ".join(characters[at : at + 2] for at in range(len(characters) - 1)) + " "
