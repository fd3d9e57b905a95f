"""Failures that repeat, such as those of reading a file: each one is counted, and logged once."""

from __future__ import annotations


class LogOnce:
    def __init__(self) -> None:
        self.last: str | None = None
        """The error of the last attempt; None if it succeeded."""
        self.failures = 0
        """Failures so far."""

    def failed(self, error: str) -> bool:
        """Count a failure. True if it must be logged: the last attempt succeeded, or failed with another error."""
        self.failures += 1
        is_new = error != self.last
        self.last = error
        return is_new

    def succeeded(self) -> bool:
        """True if the last attempt failed: its end may be logged."""
        had_failed = self.last is not None
        self.last = None
        return had_failed
