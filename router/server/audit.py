"""Writes the audit log: access that was granted or refused, keys that were added or removed, readers of the admin port.

Lines of the logger ``warmroute.audit``, and of ``warmroute.audit.reads`` for reads. A line never has a key, a whole digest, or
a path that a client made up. Events that outsiders can cause are counted and written once a second, so that a flood of them
cannot fill a disk.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

FLUSH_S = 1.0
MAX_REMOTES = 8
"""Most addresses in one line."""


@dataclass(slots=True)
class _Counted:
    times: int = 0
    remotes: list[str] = field(default_factory=list)


class Audit:
    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._reads = log.getChild("reads")
        self._counted: dict[tuple[bool, str, tuple[tuple[str, object], ...]], _Counted] = {}

    @property
    def waiting(self) -> int:
        """Lines of this second that are not written yet."""
        return len(self._counted)

    def note(self, event: str, **fields: object) -> None:
        """Write a line at once, for an event that only operators can cause."""
        self._log.info(event, extra=fields)

    def count(self, event: str, remote: str | None, *, is_read: bool = False, **fields: object) -> None:
        """Count an event, and write it with the others of its second. ``fields`` come from closed sets: each combination is a
        line a second. ``is_read``: access was granted and something was shown."""
        counted = self._counted.setdefault((is_read, event, tuple(fields.items())), _Counted())
        counted.times += 1
        if remote and remote not in counted.remotes and len(counted.remotes) < MAX_REMOTES:
            counted.remotes.append(remote)

    def flush(self) -> None:
        counted, self._counted = self._counted, {}
        for (is_read, event, fields), each in counted.items():
            log = self._reads if is_read else self._log
            log.info(event, extra={**dict(fields), "times": each.times, "remotes": each.remotes})

    async def run(self) -> None:
        """Write once a second until cancelled, and the rest then."""
        try:
            while True:
                await asyncio.sleep(FLUSH_S)
                self.flush()
        finally:
            self.flush()
