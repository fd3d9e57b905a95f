"""Breaks the reference cycles that libraries make for each connection and each error.

Python's collector of cycles seldom visits old objects. Whatever is made for each connection or request must leave no cycle, or
its memory is freed late.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast


def untie_transport(transport: asyncio.BaseTransport | None) -> None:
    """Break the cycle of a lost connection's transport. asyncio's own holds a method of itself, until Python 3.12."""
    if hasattr(transport, "_read_ready_cb"):
        cast(Any, transport)._read_ready_cb = None  # noqa: SLF001


def untie_error(error: BaseException | None) -> None:
    """Drop the tracebacks of an error that was answered. One of its frames may hold the error, and all of them hold the
    request."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        untie_error(error.__cause__)
        error = error.__context__
