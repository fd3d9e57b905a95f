"""Histories that this replica has read. Bounded by bytes; the one unused for longest goes first."""

from __future__ import annotations

from collections import OrderedDict

from router.core.request.request import Tenant
from router.sessions.context.history import History
from router.sessions.stores.contract import EMPTY, Cursor, Sid


class HistoryCache:
    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._histories: OrderedDict[Sid, History] = OrderedDict()
        self._sizes: dict[Sid, int] = {}

    def __len__(self) -> int:
        return len(self._histories)

    def known(self, sid: Sid) -> Cursor:
        """The part of the session that is in memory and need not be read again."""
        history = self._histories.get(sid)
        return EMPTY if history is None else Cursor(history.generation, history.head, history.epoch)

    def get(self, sid: Sid) -> History | None:
        return self._histories.get(sid)

    def find(self, sid: Sid, owner: Tenant, cursor: Cursor, generation: str) -> History | None:
        """The history to go on with, if the store was given ``cursor`` and has that generation. None: it was evicted since; ask
        again."""
        history = self._histories.get(sid)
        if history is not None and history.generation == generation and history.head >= cursor.head:
            return history
        return None if cursor.head and cursor.generation == generation else History(sid, owner, generation)

    def keep(self, sid: Sid, history: History) -> None:
        """Keeps the history as the newest, and counts its growth. Does nothing if another reader has a longer one."""
        other = self._histories.get(sid)
        if other is not None and other.generation == history.generation and other.head > history.head:
            return
        self.bytes += history.log.bytes - self._sizes.get(sid, 0)
        self._sizes[sid] = history.log.bytes
        self._histories[sid] = history
        self._histories.move_to_end(sid)
        while self.bytes > self.max_bytes and len(self._histories) > 1:
            oldest = next(iter(self._histories))
            self.forget(oldest)

    def forget(self, sid: Sid) -> None:
        if self._histories.pop(sid, None) is not None:
            self.bytes -= self._sizes.pop(sid)
