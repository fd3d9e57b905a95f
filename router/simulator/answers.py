"""The answers of a simulated model: tokens of one fixed text (the book), from a place that the prompt decides.

They imitate greedy decoding: if a prompt ends with the beginning of an answer, the worker generates the rest of it.
There are two books. In the plain book each word is one token of `tokenizer`, so an answer has the same number of tokens
when it comes back in a later prompt. The book of `rich_book` is numbered: each place has its own token id, so the last
id of a prompt says in any process where the answer continues. Must never loop over the tokens of a plain answer: a
range of tokens is one slice.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from random import Random

import xxhash

GENERATION_HEADER = b"<|im_start|>assistant\n"
BOOK_TOKENS = 16_384
MIN_NATURAL_TOKENS = 16
MAX_NATURAL_TOKENS = 128
_MAX_ANSWER_BYTES = 65_536
_TAIL_BYTES = 24
_FIRST_BEGINNING = 8  # tokens after a multiple of the longest answer: the answer before has ended there


def plain_tokens() -> list[bytes]:
    """The plain book: ASCII words, some followed by a space. Deterministic."""
    random = Random(20_160)
    words = [
        first + vowel + last + space
        for first in (b"t", b"d", b"c", b"m", b"p", b"b", b"f", b"w")
        for vowel in (b"a", b"e", b"i", b"o", b"u")
        for last in (b"", b"n", b"r", b"l", b"s", b"k")
        for space in (b" ", b"", b" ")
    ]
    return random.choices(words, k=BOOK_TOKENS)


def is_inside(text: bytes, end: int) -> bool:
    """Whether the first `end` bytes of a valid text end inside a character."""
    return end < len(text) and text[end] & 0xC0 == 0x80


class Book:
    """The fixed text as tokens. It takes a few milliseconds to build.

    first_id: the id of the first token in a numbered book, None if the vocabulary gives the ids. Answers of a numbered
    book begin and end at places that the book sets, between whole characters. eos_id: the token that ends an answer of
    a numbered book that has no limit.
    """

    def __init__(self, tokens: Sequence[bytes] | None = None, first_id: int | None = None) -> None:
        self.tokens = plain_tokens() if tokens is None else tokens
        self.first_id = first_id
        self.eos_id = None if first_id is None else first_id + len(self.tokens)
        self._text = b"".join(self.tokens) * 2
        self._ends = [0]
        self._place_after: dict[bytes, int] = {}
        for place, token in enumerate([*self.tokens, *self.tokens], start=1):
            end = self._ends[-1] + len(token)
            self._ends.append(end)
            self._place_after.setdefault(self._text[max(0, end - _TAIL_BYTES) : end], place % BOOK_TOKENS)
        self._whole = [] if first_id is None else self._whole_places()
        self._closings = [
            self._whole[bisect_left(self._whole, at)]
            for at in range(0, BOOK_TOKENS + 1, MAX_NATURAL_TOKENS)
            if first_id
        ]

    def _whole_places(self) -> list[int]:
        """The places between two whole characters, the end of the book included."""
        return [place for place in range(BOOK_TOKENS + 1) if not is_inside(self._text, self._ends[place])]

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The ids and tokens of a numbered book; none for the plain book."""
        if self.first_id is not None:
            yield from enumerate([*self.tokens, b"<|im_end|>"], self.first_id)

    def place(self, prompt: bytes, last_id: int = -1) -> int:
        """The place where the answer begins: after the part of an answer that ends the prompt, else by the prompt's hash.

        last_id: the prompt's last token id, if the client sent ids.
        """
        if self.first_id is not None and 0 <= last_id - self.first_id < BOOK_TOKENS:
            return (last_id - self.first_id + 1) % BOOK_TOKENS
        begin, said_tokens = self._find(prompt)
        if said_tokens:
            return (begin + said_tokens) % BOOK_TOKENS
        return self._place_after.get(prompt[-_TAIL_BYTES:], begin)

    def place_of_choice(self, place: int, index: int) -> int:
        """The place where the index-th answer to a prompt begins; the first (index 0) begins at `place`."""
        other = place + index * 977
        return other if not index or not self._whole else self._whole[bisect_left(self._whole, other % BOOK_TOKENS)]

    def _find(self, prompt: bytes) -> tuple[int, int]:
        """The place where the answer begins, and how many of the answer's tokens already stand at the prompt's end."""
        at = prompt.rfind(GENERATION_HEADER, max(0, len(prompt) - _MAX_ANSWER_BYTES))
        head_bytes = len(prompt) if at < 0 else at
        begin = self._begin(xxhash.xxh3_64_intdigest(memoryview(prompt)[:head_bytes]))
        said = prompt[at + len(GENERATION_HEADER) :] if at >= 0 else b""
        if not said or not self._text.startswith(said, self._ends[begin]):
            return begin, 0
        length = self._ends[begin] + len(said)
        return begin, bisect_left(self._ends, length, begin, begin + BOOK_TOKENS) - begin

    def _begin(self, number: int) -> int:
        """The place that belongs to a hash. In a numbered book at least 48 tokens follow before the answer ends."""
        if not self._whole:
            return number % BOOK_TOKENS
        place = number % BOOK_TOKENS
        at = place % MAX_NATURAL_TOKENS
        return self._whole[bisect_left(self._whole, place - at + _FIRST_BEGINNING + at // 2)]

    def natural_tokens(self, prompt: bytes, place: int) -> int:
        """How many tokens follow at `place` if the answer has no limit. Such an answer has 16 to 128 tokens in all."""
        if self._closings:
            place %= BOOK_TOKENS
            closing = self._closings[bisect_left(self._closings, place)]
            return closing - place + 1  # one more: the end token, which is not in the book
        said_tokens = self._find(prompt)[1]
        if said_tokens:
            head = prompt[: prompt.rindex(GENERATION_HEADER) + len(GENERATION_HEADER)]
            left = self._natural_tokens(head) - said_tokens
            if left > 0:
                return left
        return self._natural_tokens(prompt)

    def _natural_tokens(self, prompt: bytes) -> int:
        spread = MAX_NATURAL_TOKENS - MIN_NATURAL_TOKENS + 1
        return MIN_NATURAL_TOKENS + xxhash.xxh3_64_intdigest(prompt[-512:], seed=1) % spread

    def read(self, place: int, start: int, end: int) -> bytes:
        """Tokens `start` to `end` of the answer that begins at `place`."""
        begin, tokens = (place + start) % BOOK_TOKENS, end - start
        whole, rest = divmod(tokens, BOOK_TOKENS)
        text = self._text[self._ends[begin] : self._ends[begin + rest]]
        return text if not whole else self._text[self._ends[begin] : self._ends[begin + BOOK_TOKENS]] * whole + text

    def read_tokens(self, place: int, start: int, end: int) -> list[bytes]:
        return [self.tokens[(place + at) % BOOK_TOKENS] for at in range(start, end)]
