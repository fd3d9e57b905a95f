"""The contract of exact counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

CounterName = Literal["worker", "tokenizer_json", "tiktoken"]
"""Kinds of counters; a label."""

Cause = Literal["no_worker", "timeout", "worker", "tokenizer", "too_large"]
"""Why a text was estimated nevertheless; a label."""


class CannotCount(Exception):
    """The text cannot be counted now. The message is for the operator, and quotes no text."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause: Cause = cause


class Counter(Protocol):
    name: CounterName

    async def count(self, model: str, texts: Sequence[str]) -> Sequence[int]:
        """Tokens of each text, without a template and without tokens that begin or end a sequence. Raises CannotCount."""
        ...
