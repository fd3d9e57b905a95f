"""Records that tests need."""

from __future__ import annotations

from router.core.request.record import Record
from router.core.request.routes import Route
from router.core.request.trace import Trace


def a_record(trace: Trace) -> Record:
    return Record(route=Route.CHAT, model="m", policy="p", request_id="r", stream=False, started_at=1.0, trace=trace)
