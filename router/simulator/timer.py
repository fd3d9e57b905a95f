"""One alarm on the event loop, exact to some tens of microseconds on Linux.

Event loops round their timers to a millisecond, and a step of a simulated engine can be that short. On Linux a timer
file descriptor rings instead (timerfd_create(2)), elsewhere the loop's own timer. Must never ring before its time.
"""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_TFD_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Alarm(Protocol):
    """Calls back once, at the time that was set last. Times are `time.monotonic()` seconds; None switches it off."""

    def set(self, at_s: float | None) -> None: ...
    def close(self) -> None: ...


def make_alarm(ring: Callable[[], None]) -> Alarm:
    """The most exact alarm of this system, on the running loop. The caller closes it."""
    if sys.platform == "linux":
        try:
            return _KernelAlarm(ring)
        except (OSError, AttributeError, NotImplementedError):
            pass
    return _LoopAlarm(ring)


class _KernelAlarm:
    def __init__(self, ring: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._spec = (ctypes.c_long * 4)()  # interval, then value: seconds and nanoseconds each
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        try:
            self._loop.add_reader(self._fd, self._on_readable)
        except BaseException:
            os.close(self._fd)
            raise

    def set(self, at_s: float | None) -> None:
        seconds, nanoseconds = divmod(int((at_s or 0.0) * 1e9), 1_000_000_000)
        self._spec[2], self._spec[3] = seconds, nanoseconds
        if self._settime(self._fd, _TFD_TIMER_ABSTIME, self._spec, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # the alarm was set again after it ran out
        self._ring()


class _LoopAlarm:
    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._at_s = 0.0

    def set(self, at_s: float | None) -> None:
        self.close()
        if at_s is not None:
            self._at_s = at_s
            self._handle = self._loop.call_later(max(0.0, at_s - time.monotonic()), self._on_time)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _on_time(self) -> None:
        self._handle = None
        if time.monotonic() < self._at_s:
            self.set(self._at_s)
        else:
            self._ring()
