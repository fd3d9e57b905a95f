"""Wraps the data port's handler in a trace for each request. Without tracing the wrapper is not installed, and costs
nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from router.core.request.trace import TRACE
from router.server.client import SENT, SENT_AND_CLOSE

if TYPE_CHECKING:
    from router.tracing.tracer import Tracer

STORED_ANSWER = 200
"""The status of an answer that was stored, and for which no worker was asked."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def traced(handle: Handler, tracer: Tracer) -> Handler:
    """``handle`` sets the trace's route. A request without a route is not traced."""

    async def handle_traced(request: web.BaseRequest) -> web.StreamResponse:
        trace = tracer.begin(request.method, request.headers)
        TRACE.set(trace)
        status = 0
        try:
            response = await handle(request)
            status = response.status
            if response is SENT or response is SENT_AND_CLOSE:  # these do not know the status that was sent
                status = STORED_ANSWER if trace.record is None else 0
            return response
        finally:
            TRACE.set(None)
            tracer.end(trace, status)

    return handle_traced
