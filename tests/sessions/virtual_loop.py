"""An event loop whose time is a number: while anybody can go on it stands still, and then it jumps to the next timer. Hours
take no time, and what happens depends on nothing but the program."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

from router.sessions.stores.contract import StoreUnavailable


class _Jumping(selectors.SelectSelector):
    """Waits for no socket. There is none but the loop's own."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits, and nothing will ever happen"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """What a thread would do is done at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except (StoreUnavailable, OSError) as error:
            future.set_exception(error)
        return future
