"""A trace file → rows by timestamp. Must never skip a bad line: the error names it."""

import lzma
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec


class ReplayError(Exception):
    """The replay cannot run. The text is one line for the user: the file or URL, and its fault."""


class TraceRow(msgspec.Struct, frozen=True):
    """One request. timestamp: ms. Lengths: tokens.

    hash_ids: the prompt as a chain of block ids. Two prompts share a prefix as far as their ids agree from the start; a
    prompt without ids shares nothing.
    """

    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=1)]
    hash_ids: tuple[int, ...] | None = None
    session_id: str | int | None = None


def read_trace(path: Path, limit: int | None = None) -> list[TraceRow]:
    """The first `limit` rows of a .jsonl or .jsonl.xz file, sorted by timestamp. Raises ReplayError."""
    try:
        rows = list(islice(_rows(path), limit))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ReplayError(f"{path}: cannot be read: {error}") from None
    if not rows:
        raise ReplayError(f"{path}: has no requests")
    rows.sort(key=lambda row: row.timestamp)
    return rows


def _rows(path: Path) -> Iterator[TraceRow]:
    decoder = msgspec.json.Decoder(TraceRow)
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise ReplayError(f"{path}:{number}: {error}") from None
