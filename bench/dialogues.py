"""Long conversations made of real dialogues: their exchanges are joined until each turn is long enough.

A file has one dialogue a line, ``{"history": [{"user": …, "bot": …}, …]}``, as MT-Bench-101 has them. ``.xz`` files work
as well.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator, Sequence
from math import log
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

SPREAD = 0.5
"""The spread of the logarithm of a turn's tokens."""

Count = Callable[[str], int]
"""Tokens of a text."""


class Exchange(msgspec.Struct, frozen=True):
    user: str
    bot: str


class Dialogue(msgspec.Struct, frozen=True):
    history: list[Exchange]


class Turn(NamedTuple):
    """The user's text and the length of the answer. The model makes the answer's text."""

    text: str
    answer_tokens: int


def read_dialogues(path: Path) -> list[Dialogue]:
    """The dialogues of a file. Raises OSError, and msgspec.DecodeError if a line has another shape."""
    data = path.read_bytes()
    lines = (lzma.decompress(data) if path.suffix == ".xz" else data).splitlines()
    return [msgspec.json.decode(line, type=Dialogue) for line in lines]


def conversation(dialogues: Sequence[Dialogue], seed: int, turns: int, turn_tokens: int, count: Count) -> list[Turn]:
    """A conversation of joined exchanges. The same seed gives the same conversation.

    ``turn_tokens``: mean of question and answer; 0: each exchange is a turn. The exchange that passes this length belongs to
    the turn if the turn's length is then nearer to it.
    """
    random = Random(seed)
    exchanges = _shuffled(dialogues, random)
    next_one = next(exchanges)
    found: list[Turn] = []
    for _ in range(turns):
        target = random.lognormvariate(log(turn_tokens) - SPREAD**2 / 2, SPREAD) if turn_tokens else 0.0
        texts: list[str] = []
        asked = answered = 0
        while not texts or asked + answered + _size(next_one, count) / 2 <= target:
            texts.append(next_one.user)
            asked += count(next_one.user)
            answered += count(next_one.bot)
            next_one = next(exchanges)
        found.append(Turn("\n\n".join(texts), max(answered, 1)))
    return found


def preamble(dialogues: Sequence[Dialogue], tokens: int, count: Count) -> str:
    """Real text of about this length for a system message."""
    words = " ".join(exchange.bot for dialogue in dialogues[:200] for exchange in dialogue.history).split()
    size = max(1, round(tokens * len(words) / count(" ".join(words))))
    return " ".join(words[:size])


def _shuffled(dialogues: Sequence[Dialogue], random: Random) -> Iterator[Exchange]:
    """Whole dialogues in random order, without end."""
    while True:
        for dialogue in random.sample(dialogues, len(dialogues)):
            yield from dialogue.history


def _size(exchange: Exchange, count: Count) -> int:
    return count(exchange.user) + count(exchange.bot)
