"""Traces on their way to the collector: a bounded queue, and one thread that sends what is in it.

No request waits for it: what finds the queue full is dropped and counted, and so is what could not be sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from threading import Event, Thread

from router.core.request.trace import Trace

log = logging.getLogger("warmroute.tracing")

BATCH = 64
"""Traces that are sent at once."""

CAUSES = ("full", "failed", "stopped")
"""Why traces are dropped."""


class TraceQueue:
    """``send`` blocks and says whether it went well; whatever it raises is a failure. ``stop`` ends it early. ``interval_s``:
    how long a trace waits for others to be sent with."""

    def __init__(
        self, send: Callable[[Sequence[Trace]], bool], stop: Callable[[], None], max_traces: int, interval_s: float
    ) -> None:
        self._send = send
        self._stop = stop
        self._interval_s = interval_s
        self._waiting: deque[Trace] = deque()
        self._has_batch = Event()
        self._is_closing = False
        self._has_failed = False
        self._thread = Thread(target=self._run, name="traces", daemon=True)  # a collector that hangs holds up no exit
        self.max_traces = max_traces
        self.sent = 0
        self.dropped: Counter[str] = Counter(dict.fromkeys(CAUSES, 0))

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._thread.start()

    def put(self, trace: Trace) -> None:
        if len(self._waiting) >= self.max_traces:
            self.dropped["full"] += 1
            return
        self._waiting.append(trace)
        if len(self._waiting) == BATCH:
            self._has_batch.set()

    async def close(self, within_s: float) -> None:
        """Send what waits, if that is possible in time."""
        self._is_closing = True
        self._has_batch.set()
        await asyncio.to_thread(self._thread.join, within_s)
        self._stop()
        if left := len(self._waiting):
            self.dropped["stopped"] += left
            log.warning("traces were not sent before the end", extra={"traces": left})

    def _run(self) -> None:
        while not self._is_closing:
            self._has_batch.wait(self._interval_s)
            self._has_batch.clear()
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        """All of it, or until that fails: then the rest waits for the next time."""
        is_well = True
        while is_well and self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            is_well = self._is_sent(batch)
            if is_well:
                self.sent += len(batch)
            else:
                self.dropped["failed"] += len(batch)
            self._tell(has_failed=not is_well)

    def _is_sent(self, batch: Sequence[Trace]) -> bool:
        try:
            return self._send(batch)
        except (
            Exception
        ) as error:  # what exporters raise differs by release, and without this thread no trace is ever sent
            log.debug("a batch of traces could not be sent", exc_info=error)
            return False

    def _tell(self, *, has_failed: bool) -> None:
        """Once, when it begins and when it ends; how often is a metric's to say."""
        if has_failed and not self._has_failed:
            log.warning("traces cannot be sent, and are dropped")
        elif self._has_failed and not has_failed:
            log.info("traces are sent again")
        self._has_failed = has_failed
