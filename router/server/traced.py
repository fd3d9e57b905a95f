"""The data port's handler with a trace around each request. Where tracing is off it is not there, and costs nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from aiohttp import web

from router.core.request.trace import TRACE, Trace
from router.server.client import SENT, SENT_AND_CLOSE

TOLD_AGAIN = 200
"""The status of an answer that no worker was asked for: one that was kept."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Tracer(Protocol):
    def begin(self, method: str, headers: Mapping[str, str]) -> Trace: ...

    def end(self, trace: Trace, status: int) -> None: ...


def traced(handle: Handler, tracer: Tracer) -> Handler:
    """``handle`` says in the trace which route it is; what has none is not traced."""

    async def handle_traced(request: web.BaseRequest) -> web.StreamResponse:
        trace = tracer.begin(request.method, request.headers)
        TRACE.set(trace)
        status = 0
        try:
            response = await handle(request)
            status = response.status
            if response is SENT or response is SENT_AND_CLOSE:  # it says nothing of what was sent
                status = TOLD_AGAIN if trace.record is None else 0
            return response
        finally:
            TRACE.set(None)
            tracer.end(trace, status)

    return handle_traced
