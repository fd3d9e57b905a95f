"""What fails again and again, such as looks at a file: each time is counted, and told once."""

from __future__ import annotations


class LogOnce:
    def __init__(self) -> None:
        self._told = ""
        self.failures = 0
        """Times that it failed."""

    def is_new(self, error: str) -> bool:
        """It failed, of this. Whether that has to be told: not where it is what was told last."""
        self.failures += 1
        is_new = error != self._told
        self._told = error
        return is_new

    def over(self) -> None:
        """It went well: what comes next is told, whatever it is."""
        self._told = ""
