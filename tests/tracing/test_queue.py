"""The thread that sends traces outlives whatever its exporter does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from router.core.request.trace import Trace
from router.tracing.queue import TraceQueue
from tests.e2e.routed import until


class Exporter:
    """Raises what it is given, then is well."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.sent = 0

    def send(self, traces: Sequence[Trace]) -> bool:
        if self.errors:
            raise self.errors.pop(0)
        self.sent += len(traces)
        return True


def a_trace() -> Trace:
    return Trace(
        trace_id="1" * 32, span_id="2" * 16, parent_id="", is_sampled=True, began_at=0.0, new_span_id=lambda: "3" * 16
    )


@pytest.mark.parametrize("error", [ConnectionError("closed"), ValueError("a bad answer"), RuntimeError("redirected")])
async def test_traces_are_sent_again_after_the_exporter_raised(error: Exception) -> None:
    exporter = Exporter(error, error)
    queue = TraceQueue(exporter.send, lambda: None, max_traces=10, interval_s=0.01)
    queue.start()

    def has_tried(number: int) -> bool:
        return queue.dropped["failed"] + queue.sent == number

    for number in range(1, 4):
        queue.put(a_trace())
        await until(partial(has_tried, number))
    assert (queue.dropped["failed"], queue.sent, exporter.sent) == (2, 1, 1)
    await asyncio.wait_for(queue.close(5.0), 10.0)
