"""Ids of sessions in a store: digests of tenant and name, since other tenants use the same names, and names may tell whose a
session is."""

from __future__ import annotations

import hmac
from base64 import b32encode
from enum import Enum

import xxhash

from router.core.request.request import SessionKey, Tenant
from router.sessions.stores.contract import Sid

DIGEST_BYTES = 20


class Namespace(Enum):
    """Names of one namespace never meet those of another."""

    SESSION = "session"
    CONVERSATION = "conversation"
    CHAIN = "chain"
    """Responses that follow one another without a conversation, under the id of the first."""
    RESPONSE = "response"


class SessionIds:
    """``secret``: the same on all replicas, and as long as the sessions live."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sid(self, tenant: Tenant, namespace: Namespace, name: str) -> Sid:
        """32 characters of base32. Each part of the digested text follows its length, so that no two lists of parts make the
        same text."""
        parts = (tenant, namespace.value, name)
        text = "".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")
        digest = hmac.digest(self._secret, text, "sha256")[:DIGEST_BYTES]
        return Sid(b32encode(digest).decode().lower())


def affinity_key(sid: Sid) -> SessionKey:
    """The key by which routing remembers a session's last worker."""
    return SessionKey(xxhash.xxh3_64_intdigest(sid.encode()))
