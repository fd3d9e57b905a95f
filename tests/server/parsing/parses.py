"""What the tests have read in other processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from router.core.errors import InvalidRequest


def length(body: bytes) -> int:
    return len(body)


def whose(_body: bytes) -> int:
    return os.getpid()


def refuse(_body: bytes) -> None:
    raise InvalidRequest("it is wrong", param="messages[3]")


def die(_body: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(body: bytes) -> int:
    return len([dict[int, int]() for _ in range(len(body) * 1000)])


def swell(_body: bytes) -> bytes:
    return bytes(350 << 20)


def note_and_wait(_body: bytes, *, began: str, gate: str) -> str:
    """Until something was written into the named pipe ``gate``."""
    with Path(began).open("a") as notes:
        notes.write(f"{began}\n")
    return Path(gate).read_text()
