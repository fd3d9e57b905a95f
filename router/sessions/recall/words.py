"""The words by which a text is found. Pure."""

from __future__ import annotations

import re
from unicodedata import normalize

MAX_QUERY_WORDS = 64
MAX_WORD_CHARS = 100
"""Longer words are cut: keys of an index are bounded."""

_WORD = re.compile(r"[^\W_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
"""Scripts that put no space between words: Han and kana."""


def spaced(text: str) -> str:
    """The text for an index: in scripts without spaces between words, each pair of neighbouring characters is a word. NUL
    becomes a space."""
    return _UNSPACED.sub(_pairs, text.replace("\0", " "))


def query_words(query: str) -> list[str]:
    """Words of letters and digits, each once, in order, MAX_QUERY_WORDS at most."""
    return list(dict.fromkeys(_WORD.findall(spaced(query).lower())))[:MAX_QUERY_WORDS]


def plain_words(text: str) -> list[str]:
    """All words of letters and digits, each once, in order and without accents: for an index that does not remove accents
    itself. Linear."""
    plain = normalize("NFC", _ACCENTS.sub("", normalize("NFKD", text).lower()))
    return list(dict.fromkeys(word[:MAX_WORD_CHARS] for word in _WORD.findall(spaced(plain))))


def _pairs(run: re.Match[str]) -> str:
    characters = run[0]
    if len(characters) == 1:
        return f" {characters} "
    return " " + " ".join(characters[at : at + 2] for at in range(len(characters) - 1)) + " "
