"""Workers listed in a file: one URL a line, ``#`` begins a comment. Read anew each time, so an edit is all it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from router.core.worker import WorkerAddress, parse_address
from router.upstream.discovery import Unreadable


class FileSource:
    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> Sequence[WorkerAddress]:
        """All of the file or nothing: one bad line must not take the other workers' place."""
        try:
            text = await asyncio.to_thread(self._path.read_text, "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unreadable(f"{self._path}: {error}") from None
        addresses = []
        for number, line in enumerate(text.splitlines(), start=1):
            if url := line.partition("#")[0].strip():
                try:
                    addresses.append(parse_address(url))
                except ValueError as error:
                    raise Unreadable(f"{self._path}, line {number}: {error}") from None
        return addresses
