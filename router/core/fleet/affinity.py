"""The worker of each session's last turn. Bounded: the session that was unused for longest is forgotten first."""

from __future__ import annotations

from collections import OrderedDict

from router.core.request.request import SessionKey
from router.core.worker import WorkerName


class LastWorkers:
    """By name: a position may belong to another worker by the session's next turn."""

    def __init__(self, max_sessions: int) -> None:
        self.max_sessions = max_sessions
        self._names: OrderedDict[SessionKey, WorkerName] = OrderedDict()

    def get(self, session: SessionKey) -> WorkerName | None:
        return self._names.get(session)

    def set(self, session: SessionKey, name: WorkerName) -> None:
        self._names[session] = name
        self._names.move_to_end(session)
        if len(self._names) > self.max_sessions:
            self._names.popitem(last=False)

    def __len__(self) -> int:
        return len(self._names)
