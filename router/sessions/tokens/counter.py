"""The contract of whatever counts a text's tokens exactly, as the model that reads it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

CounterName = Literal["worker", "tokenizer_json", "tiktoken"]
"""A label."""

Cause = Literal["no_worker", "timeout", "worker", "tokenizer", "too_large"]
"""Why a text was estimated all the same; a label."""


class CannotCount(Exception):
    """It cannot be told now. The message is for the operator, and quotes no text."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause: Cause = cause


class Counter(Protocol):
    name: CounterName

    async def count(self, model: str, texts: Sequence[str]) -> Sequence[int]:
        """Tokens of each, without a template and without what begins or ends a sequence. Raises CannotCount."""
        ...
