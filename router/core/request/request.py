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
    """The body for the worker: the client's bytes, in which the router sets a few members."""
    fingerprint: Fingerprint
    """Hashes of the canonical prompt: tools, then messages in order. On routes that reuse no KV there are none, and its length
    is the body's."""
    anchor: int
    """64-bit ring key of the stable prefix: tools, system prompt, first user turn."""
    earlier_bytes: int
    """Bytes of the prompt before the newest messages, once there is an assistant's message; else 0."""
    session: SessionKey | None
    tenant: Tenant
    """Known from the API key alone."""
    hides_usage: bool
    """True if the router asked for the usage chunk and the client did not."""
    hides_ids: bool = False
    """True if the router asked for token ids and the client did not."""
    is_resumable: bool = False
    """True if another worker may continue the stream, so that the router keeps what the client has of it."""
    answers: int = 1
    """Choices for all its prompts together, ≥ 1."""
    max_answer_tokens: int | None = None
    """Most tokens of each answer; None: as many as the model's window leaves; 0: the route generates none."""
    is_entered: bool = False
    """A stateful route has already counted it among its tenant's requests."""
    request_id: str
    traceparent: str = ""
    """W3C trace context for the worker; empty if there is none."""
    tracestate: str = ""
    """The vendors' part of the trace context."""
    hidden_salt: str = ""
    """The cache salt that the router put into the body. The client must not see it; empty: there is none."""
