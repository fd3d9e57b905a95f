"""A turn's request, as far as all stateful routes make it alike."""

from __future__ import annotations

from functools import partial

from router.server.page_routes import Call
from router.sessions.api.rules import read_idempotency_key, read_overrides
from router.sessions.context.prompt import Incoming
from router.sessions.planner import ApiName, TurnRequest


def turn_request(call: Call, api: ApiName, incoming: Incoming, asked: str) -> partial[TurnRequest]:
    """``asked``: digest of the body. Raises InvalidRequest."""
    return partial(
        TurnRequest,
        api=api,
        caller=call.caller,
        incoming=incoming,
        headers=call.headers,
        request_id=call.request_id,
        started_at=call.started_at,
        idempotency_key=read_idempotency_key(call.headers),
        overrides=read_overrides(call.headers),
        asked=asked,
        body_bytes=len(call.body),
    )
