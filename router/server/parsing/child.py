"""The process at the other end of ``pool``. It reads one call after another from standard input, and writes the results.

A call is two lengths of 8 bytes, the pickled function, and the body; a result is a length and a pickled ``(is_ok, value)``.
The system limits the memory of the process, so that no body can take more.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
from typing import BinaryIO

from router.core.errors import RequestTooLarge, RouterError

LENGTH_BYTES = 8

NICENESS = 10
"""Priority below the routers' event loops, in case cores are few."""


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # they are sent to all processes, and the parent decides when this one ends
    os.nice(NICENESS)
    max_memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    serve(sys.stdin.buffer, sys.stdout.buffer)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Serve calls until ``source`` ends."""
    while len(head := source.read(2 * LENGTH_BYTES)) == 2 * LENGTH_BYTES:
        call = source.read(int.from_bytes(head[:LENGTH_BYTES]))
        body = source.read(int.from_bytes(head[LENGTH_BYTES:]))
        answer = _answer(call, body)
        sink.write(len(answer).to_bytes(LENGTH_BYTES))
        sink.write(answer)
        sink.flush()


def _answer(call: bytes, body: bytes) -> bytes:
    try:
        return _pickled(True, pickle.loads(call)(body))  # noqa: S301  # our own parent's
    except RouterError as error:
        return _pickled(False, error)
    except MemoryError:
        return _pickled(False, RequestTooLarge("the body takes too much memory to read: it has too many values"))


def _pickled(is_ok: bool, value: object) -> bytes:
    return pickle.dumps((is_ok, value), protocol=5)


if __name__ == "__main__":
    main()
