"""Workers listed in a file: one URL a line, ``#`` begins a comment. The file is read anew each time, so an edit takes effect
by itself.

A file that is being written must not remove workers, so a list counts as a whole or not at all. Every line must be valid. A
list without workers must have the line ``none``. A list whose last line has no line end may continue, and counts only when it
was read twice with the same content.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from router.core.worker import WorkerAddress, parse_address
from router.upstream.discovery import Unreadable

NONE = "none"


class FileSource:
    kind: ClassVar[str] = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: str | None = None
        """The content at the last read."""

    async def read(self) -> Sequence[WorkerAddress]:
        """Raises Unreadable."""
        try:
            text = await asyncio.to_thread(self._path.read_text, "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unreadable(f"{self._path}: {error}") from None
        before, self._text = self._text, text
        addresses = self._parse(text)
        if not text.endswith("\n") and before not in (None, text):
            raise Unreadable(f"{self._path}: its last line has no end, and may still be written")
        return addresses

    def _parse(self, text: str) -> list[WorkerAddress]:
        entries = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
        entries = [(number, entry) for number, entry in entries if entry]
        if not entries:
            raise Unreadable(f"{self._path}: lists no worker; an empty fleet has the line {NONE!r}")
        if [entry for _, entry in entries] == [NONE]:
            return []
        addresses = []
        for number, entry in entries:
            try:
                addresses.append(parse_address(entry))
            except ValueError as error:
                raise Unreadable(f"{self._path}, line {number}: {error}") from None
        return addresses
