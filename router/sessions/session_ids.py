"""What a session is called in a store: never by its own name, which other tenants use too, and which may tell whose it is."""

from __future__ import annotations

import hmac
from base64 import b32encode
from enum import Enum

import xxhash

from router.core.request.request import SessionKey, Tenant
from router.sessions.stores.contract import Sid

DIGEST_BYTES = 20


class Namespace(Enum):
    """Names of one space never meet those of another."""

    SESSION = "session"
    CONVERSATION = "conversation"
    CHAIN = "chain"
    """Responses that follow one another without a conversation; named by their first."""
    RESPONSE = "response"


class SessionIds:
    """``secret``: the same on all replicas, and as long as the sessions live."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sid(self, tenant: Tenant, namespace: Namespace, name: str) -> Sid:
        """32 characters of base32. Lengths stand before the parts, so that no two lists of parts give the same text."""
        parts = (tenant, namespace.value, name)
        text = "".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")
        digest = hmac.digest(self._secret, text, "sha256")[:DIGEST_BYTES]
        return Sid(b32encode(digest).decode().lower())


def affinity_key(sid: Sid) -> SessionKey:
    """By which routing remembers a session's last worker."""
    return SessionKey(xxhash.xxh3_64_intdigest(sid.encode()))
