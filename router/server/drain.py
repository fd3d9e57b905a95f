"""Stops the router without refusing or cutting requests, as far as time allows.

leaving    /ready fails, all requests are served, each answer closes its connection: load balancers turn away
draining   no new request is accepted; live ones may end
the end    a stream that takes longer gets an error event, a request without an answer a 503
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

from router.server.data import DataPort, Phase

log = logging.getLogger("warmroute.drain")

POLL_S = 0.05
FLUSH_S = 1.0
"""How long the last error events may take to be sent."""


class StopSignals:
    """SIGTERM and SIGINT. After a second one, and after an interrupt from a terminal, the router does not wait for load
    balancers."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self.came.is_set() or number == signal.SIGINT:
            self.hurry.set()
        self.came.set()


async def drain(
    data: DataPort,
    stop_accepting: Callable[[], Awaitable[None]],
    hurry: asyncio.Event,
    *,
    leave_s: float,
    drain_s: float,
) -> None:
    """Returns when no request is live, at the latest after both times and a second. ``hurry`` skips the first time."""
    log.info("leaving", extra={"live": data.live, "for_s": leave_s})
    data.phase = Phase.LEAVING
    await _wait(hurry, leave_s)
    log.info("draining", extra={"live": data.live, "at_most_s": drain_s})
    data.phase = Phase.DRAINING
    await stop_accepting()
    if await _ended(data, drain_s):
        return
    log.warning("drain ended with requests under way", extra={"live": data.live})
    data.cut_short()
    await _ended(data, FLUSH_S)


async def _wait(event: asyncio.Event, at_most_s: float) -> None:
    try:
        async with asyncio.timeout(at_most_s):
            await event.wait()
    except TimeoutError:
        return


async def _ended(data: DataPort, at_most_s: float) -> bool:
    """False if requests are still live after this time."""
    try:
        async with asyncio.timeout(at_most_s):
            while data.live:
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False
    return True
