"""One request as the router understands it: decoded once, frozen, passed down."""

from __future__ import annotations

from typing import NewType

import msgspec

from router.core.index.fingerprint import Fingerprint
from router.core.request.routes import Route

Tenant = NewType("Tenant", str)
NO_TENANT = Tenant("")

Sid = NewType("Sid", str)
"""A session's key in the store: an HMAC of tenant and name, so that keys can neither be guessed nor collide."""

SessionKey = NewType("SessionKey", int)
"""64-bit digest of tenant, the source that named the session, and its name: equal names from two sources differ."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    route: Route
    model: str
    stream: bool
    body: bytes
    """What goes to the worker: the client's bytes, with at most the usage request and the cache salt spliced in."""
    fingerprint: Fingerprint
    """Of the canonical prompt: tools, then messages in order. Its length is the body's on routes that reuse no KV."""
    anchor: int
    """64-bit ring key of the stable prefix: tools, system prompt, first user turn."""
    earlier_bytes: int
    """Of the prompt, the bytes before the newest messages, once there is an assistant's message; else 0."""
    session: SessionKey | None
    tenant: Tenant
    """Known from the API key alone."""
    hides_usage: bool
    """True where the router asked for the usage chunk and the client did not."""
    hides_ids: bool = False
    """True where the router asked for token ids and the client did not."""
    is_resumable: bool = False
    """True where another worker might go on with the stream, so that what the client has of it must be kept."""
    answers: int = 1
    """Choices of all its prompts together, ≥ 1."""
    max_answer_tokens: int | None = None
    """Of each; None: as many as the model's window leaves. 0 on routes that generate nothing."""
    is_entered: bool = False
    """It was counted among its tenant's requests already, at the door of a route that keeps state."""
    request_id: str
    traceparent: str = ""
    """W3C trace context to pass on; empty where the client sent none."""
    tracestate: str = ""
    """What goes with it."""
    hidden_salt: str = ""
    """The cache salt in the body that the client did not write, and must not read; empty: none was put there."""
