"""Counts texts in this process: short ones at once, long ones in threads, so that no text stops the loop.

A text is counted in pieces. Tokenizers take more than linear time for text without words, hold the interpreter while they build
their lists, and one overflows its stack over a million spaces. Pieces rule all of that out. A cut within a word costs a token
or two: 0.02 % of long prose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from router.sessions.tokens.counter import CannotCount, CounterName

PIECE_CHARS = 16 << 10

MAX_LOOP_BYTES = 8 << 10
"""Text that is counted without a thread; more would hold up the event loop."""

CountText = Callable[[str], int]
"""Raises CannotCount."""


class LocalCounter:
    """``max_loop_bytes``: texts of one call, together, that are counted without a thread."""

    def __init__(
        self,
        name: CounterName,
        count_text: CountText,
        threads: ThreadPoolExecutor,
        *,
        max_loop_bytes: int = MAX_LOOP_BYTES,
    ) -> None:
        self.name = name
        self._count_text = count_text
        self._threads = threads
        self._max_loop_bytes = max_loop_bytes

    async def count(self, model: str, texts: Sequence[str]) -> Sequence[int]:  # noqa: ARG002  # a Counter
        """All models have the same counts. Raises CannotCount."""
        if sum(len(text.encode()) for text in texts) <= self._max_loop_bytes:
            return self._count_all(texts)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._count_all, texts)

    def _count_all(self, texts: Sequence[str]) -> list[int]:
        return [self._count(text) for text in texts]

    def _count(self, text: str) -> int:
        if len(text) <= PIECE_CHARS:
            return self._count_text(text)
        return sum(self._count_text(text[at : at + PIECE_CHARS]) for at in range(0, len(text), PIECE_CHARS))


def guarded(count_text: CountText) -> CountText:
    """The two libraries are written in Rust. Their errors are plain Exceptions, and their panics are not even that."""

    def count(text: str) -> int:
        try:
            return count_text(text)
        except BaseException as error:
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise CannotCount("tokenizer", f"the tokenizer failed: {type(error).__name__}") from None
            raise

    return count
