"""How many connections show the same API key. A connection counts for the key of its latest request until it is closed, so what
rests counts, too; the key's digest is all that is kept of it."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from router.core.errors import ConnectionsLimited


class Connection(Protocol):
    key: bytes
    """Digest of the key that it counts for; empty: none."""


class KeyConnections:
    """``most``: of one key; 0: any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """Keys that some connection shows."""
        return len(self._counts)

    @property
    def peak(self) -> int:
        """Connections that show the key which most show now."""
        return max(self._counts.values(), default=0)

    def claim(self, connection: Connection, key: bytes) -> None:
        """Raises ConnectionsLimited, and then the connection counts for none."""
        if connection.key == key:
            return
        self.release(connection)
        if self._most and self._counts[key] >= self._most:
            raise ConnectionsLimited(f"{self._most} connections show this key, which is the most", retry_after_s=1)
        connection.key = key
        self._counts[key] += 1

    def release(self, connection: Connection) -> None:
        key, connection.key = connection.key, b""
        if not key:
            return
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
