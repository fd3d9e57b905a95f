"""Failures that repeat, such as those of reading a file: each one is counted, and logged once."""

from __future__ import annotations


class LogOnce:
    def __init__(self) -> None:
        self._last: str | None = None
        self.failures = 0
        """Failures so far."""

    def failed(self, error: str) -> bool:
        """Count a failure. True if it must be logged: the last attempt succeeded, or failed with another error."""
        self.failures += 1
        is_new = error != self._last
        self._last = error
        return is_new

    def succeeded(self) -> bool:
        """True if the last attempt failed: its end may be logged."""
        had_failed = self._last is not None
        self._last = None
        return had_failed
