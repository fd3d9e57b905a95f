"""Counts the connections that show the same API key. A connection counts for the key of its latest request until it is closed,
also while it is idle. Only the key's digest is kept.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from router.core.errors import ConnectionsLimited


class Connection(Protocol):
    key: bytes
    """Digest of the key that it counts for; empty means none."""


class KeyConnections:
    """At most ``most`` connections may show one key; 0 means any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """Keys that at least one connection shows."""
        return len(self._counts)

    @property
    def peak(self) -> int:
        """Connections of the key that is shown by most."""
        return max(self._counts.values(), default=0)

    def claim(self, connection: Connection, key: bytes) -> None:
        """Count the connection for ``key``. Raises ConnectionsLimited; then it counts for no key."""
        if connection.key == key:
            return
        self.release(connection)
        if self._most and self._counts[key] >= self._most:
            raise ConnectionsLimited(f"the key has {self._most} connections, and may have no more", retry_after_s=1)
        connection.key = key
        self._counts[key] += 1

    def release(self, connection: Connection) -> None:
        key, connection.key = connection.key, b""
        if not key:
            return
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
