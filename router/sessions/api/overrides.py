"""A session's context as clients set and see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict

from router.core.errors import InvalidRequest
from router.core.tenants.tenant import ContextStrategy, ContextTokens
from router.sessions.context.history import History
from router.sessions.context.view import ContextOverrides, Segment


class _Overrides(msgspec.Struct, forbid_unknown_fields=True):
    strategy: ContextStrategy | None = None
    high_tokens: ContextTokens | None = None
    low_tokens: ContextTokens | None = None
    max_tokens: ContextTokens | None = None


def read_context_overrides(members: Mapping[str, Any]) -> ContextOverrides:
    """The session's overrides, in place of earlier ones. Members that are missing or null follow the tenant. Raises
    InvalidRequest."""
    try:
        overrides = msgspec.convert(members, _Overrides)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"strategy, high_tokens, low_tokens, max_tokens: {error}") from None
    if overrides.high_tokens and overrides.low_tokens and overrides.low_tokens >= overrides.high_tokens:
        raise InvalidRequest("low_tokens must be less than high_tokens: a cut must leave less than it finds")
    return ContextOverrides(
        strategy=overrides.strategy,
        high_tokens=overrides.high_tokens or 0,
        low_tokens=overrides.low_tokens or 0,
        max_tokens=overrides.max_tokens or 0,
    )


def show_context(name: str, history: History) -> bytes:
    view = history.view
    return msgspec.json.encode(
        {
            "id": name,
            "object": "session.context",
            **{name: value or None for name, value in asdict(view.overrides).items()},
            "items_left_out": history.start,
            "items_sent": len(history.bodies),
            "tokens_left_out": history.cut_tokens,
            "tokens_sent": history.tokens,
            "summaries": [_shown(segment) for segment in view.segments],
            "summaries_for_the_next_cut": [_shown(segment) for segment in view.pending],
            "is_being_written": view.work is not None,
        }
    )


def _shown(segment: Segment) -> dict[str, Any]:
    return {
        "from_turn": segment.since.turn,
        "upto_turn": segment.upto.turn,
        "text": segment.text,
        "tokens": segment.tokens,
    }
