"""The conversation that a request belongs to, by the first source that names one.

Request and trace ids are no sources: they differ on every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from router.core.request.request import SessionKey, Tenant

HEADERS = (
    "X-Session-ID",
    "x-claude-code-agent-id",
    "x-claude-code-session-id",
    "thread-id",
    "session-id",
    "session_id",
    "x-session-affinity",
)
"""The router's own header, then those that coding agents send: Claude Code, Codex (both spellings), OpenCode."""


def session_key(headers: Mapping[str, str], body: Mapping[str, Any], tenant: Tenant) -> SessionKey | None:
    """The key depends on tenant and source, so that equal names from two sources differ."""
    for source in HEADERS:
        if name := headers.get(source):
            return _key(tenant, source, name)
    if isinstance(name := body.get("prompt_cache_key"), str) and name:
        return _key(tenant, "prompt_cache_key", name)
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and isinstance(name := metadata.get("user_id"), str) and name:
        return _key(tenant, "metadata.user_id", name)
    if isinstance(name := body.get("user"), str) and name:
        return _key(tenant, "user", name)
    return None


def _key(tenant: Tenant, source: str, name: str) -> SessionKey:
    return SessionKey(xxhash.xxh3_64_intdigest(f"{len(tenant)}:{tenant}{source}:{name}".encode(errors="surrogatepass")))
