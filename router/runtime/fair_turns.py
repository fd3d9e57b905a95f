"""Decides whose call is next when only a few calls can run at once. Each tenant has a queue of its own, and the tenants take
turns, so a flood of one delays the others by no more than its running calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType


class FairTurns:
    """``max_calls`` run at once, ``max_owner_calls`` of one owner. ``max_waiting`` calls of one owner wait, and a further one
    is refused. So is a call that has waited ``max_wait_s``. ``refuse`` makes the error."""

    def __init__(
        self,
        *,
        max_calls: int,
        max_owner_calls: int,
        max_waiting: int,
        max_wait_s: float,
        refuse: Callable[[str], Exception],
    ) -> None:
        self._max_calls = max_calls
        self._max_owner_calls = max_owner_calls
        self.max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._refuse = refuse
        self._under_way = 0
        self._of_owner: dict[str, int] = {}
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        """Waiting calls by owner, in the order of the owners' turns. No queue is empty."""
        self.refused = 0

    @property
    def under_way(self) -> int:
        return self._under_way

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def waiting_of(self, owner: str) -> int:
        return len(self._lines.get(owner, ()))

    def of(self, owner: str) -> _Turn:
        """``async with`` runs its block as one call. Raises what ``refuse`` makes."""
        return _Turn(self, owner)

    async def take(self, owner: str) -> None:
        if self._has_room(owner) and owner not in self._lines:
            self._begin(owner)
            return
        line = self._lines.setdefault(owner, deque())
        if len(line) >= self.max_waiting:
            self.refused += 1
            raise self._refuse(f"{len(line)} calls of the tenant wait already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            async with asyncio.timeout(self._max_wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give(owner)  # it got its turn in the same moment
            else:
                self._leave(owner, turn)
            if not isinstance(error, TimeoutError):
                raise
            self.refused += 1
            raise self._refuse(f"calls of the tenant kept this one waiting for {self._max_wait_s} s") from None

    def give(self, owner: str) -> None:
        self._under_way -= 1
        self._of_owner[owner] -= 1
        if not self._of_owner[owner]:
            del self._of_owner[owner]
        if self._lines:
            self._call_next()

    def _has_room(self, owner: str) -> bool:
        return self._under_way < self._max_calls and self._of_owner.get(owner, 0) < self._max_owner_calls

    def _begin(self, owner: str) -> None:
        self._under_way += 1
        self._of_owner[owner] = self._of_owner.get(owner, 0) + 1

    def _leave(self, owner: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(owner, deque())
        if turn in line:
            line.remove(turn)
            if not line:
                del self._lines[owner]

    def _call_next(self) -> None:
        """Start the first call of the next owner, who then goes to the end of the order."""
        while (owner := next(filter(self._has_room, self._lines), None)) is not None:
            line = self._lines.pop(owner)
            turn = line.popleft()
            if line:
                self._lines[owner] = line
            if not turn.cancelled():  # a cancelled one has just left
                self._begin(owner)
                turn.set_result(None)
                return


class _Turn:
    def __init__(self, turns: FairTurns, owner: str) -> None:
        self._turns = turns
        self._owner = owner

    async def __aenter__(self) -> None:
        await self._turns.take(self._owner)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._turns.give(self._owner)
