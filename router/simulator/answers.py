"""What a simulated model says: words from one fixed book, read on from a place that the prompt decides.

Each word of the book is one token of `tokenizer`, so an answer that comes back in a later prompt has as many tokens
there as were generated. Greedy decoding is what it stands for: a prompt that ends in the beginning of an answer is
answered by the rest of it. Must never loop over the tokens of an answer: a range of them is one slice.
"""

from random import Random

import xxhash

GENERATION_HEADER = b"<|im_start|>assistant\n"
BOOK_TOKENS = 16_384
MIN_NATURAL_TOKENS = 16
MAX_NATURAL_TOKENS = 128
_MAX_ANSWER_BYTES = 65_536
_TAIL_BYTES = 24


class Book:
    """The fixed text, by token. Deterministic; built in some milliseconds."""

    def __init__(self) -> None:
        random = Random(20_160)
        words = [
            first + vowel + last + space
            for first in (b"t", b"d", b"c", b"m", b"p", b"b", b"f", b"w")
            for vowel in (b"a", b"e", b"i", b"o", b"u")
            for last in (b"", b"n", b"r", b"l", b"s", b"k")
            for space in (b" ", b"", b" ")
        ]
        self.tokens = random.choices(words, k=BOOK_TOKENS)
        self._text = b"".join(self.tokens) * 2
        self._ends = [0]
        self._place_after: dict[bytes, int] = {}
        for place, token in enumerate(self.tokens * 2, start=1):
            end = self._ends[-1] + len(token)
            self._ends.append(end)
            self._place_after.setdefault(self._text[max(0, end - _TAIL_BYTES) : end], place % BOOK_TOKENS)

    def place(self, prompt: bytes) -> int:
        """Where the answer to a prompt begins: after what of an answer it ends in, or where its hash says."""
        at = prompt.rfind(GENERATION_HEADER, max(0, len(prompt) - _MAX_ANSWER_BYTES))
        head_bytes = len(prompt) if at < 0 else at
        begin = xxhash.xxh3_64_intdigest(memoryview(prompt)[:head_bytes]) % BOOK_TOKENS
        said = prompt[at + len(GENERATION_HEADER) :] if at >= 0 else b""
        if said and self._text.startswith(said, self._ends[begin]):
            length, low, high = self._ends[begin] + len(said), begin, begin + BOOK_TOKENS
            while low < high:
                middle = (low + high) // 2
                if self._ends[middle] < length:
                    low = middle + 1
                else:
                    high = middle
            return low % BOOK_TOKENS
        return self._place_after.get(prompt[-_TAIL_BYTES:], begin)

    def natural_tokens(self, prompt: bytes) -> int:
        """How long an answer is when the client sets no limit: 16 to 128 tokens."""
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
