"""Who is asking: the key in a request's head → Caller. Whoever cannot be told is refused, never taken for nobody.

Clients hear the same of a key that is absent, malformed, unknown, disabled or expired; the metric and the audit log know
which it was.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Protocol, cast

from aiohttp import web

from router.core.errors import InvalidApiKey
from router.core.keyring import Keyring, Refusal
from router.core.tenant import Caller
from router.server.audit import Audit
from router.server.key_connections import Connection, KeyConnections

_NONE: tuple[str, ...] = ()


class Gate(Protocol):
    connections: KeyConnections

    def admit(self, request: web.BaseRequest, *, takes_x_api_key: bool = False) -> Caller:
        """``takes_x_api_key``: Anthropic's clients ask for this path, too. Raises InvalidApiKey, ConnectionsLimited."""
        ...


class OpenGate:
    """Of a router that was told to serve everybody."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.connections = KeyConnections(0)

    def admit(self, _request: web.BaseRequest, *, takes_x_api_key: bool = False) -> Caller:  # noqa: ARG002
        return self._caller


class KeyGate:
    """``keyring`` is replaced as a whole when the keys change. ``now``: seconds since the epoch."""

    def __init__(self, keyring: Keyring, audit: Audit, now: Callable[[], float], max_connections: int = 0) -> None:
        """``max_connections``: of one key; 0: any number."""
        self.keyring = keyring
        self.connections = KeyConnections(max_connections)
        self._audit = audit
        self._now = now
        self.refusals = dict.fromkeys(Refusal, 0)

    def admit(self, request: web.BaseRequest, *, takes_x_api_key: bool = False) -> Caller:
        key = _presented(request, takes_x_api_key=takes_x_api_key)
        digest = b"" if isinstance(key, Refusal) else _digest(key)
        found = key if isinstance(key, Refusal) else self.keyring.find(digest, self._now())
        if isinstance(found, Caller):
            self.connections.claim(cast(Connection, request.protocol), digest)
            return found
        self.refusals[found] += 1
        self._audit.count("authentication refused", request.remote, reason=found.value)
        raise InvalidApiKey("a valid API key is required")


def _presented(request: web.BaseRequest, *, takes_x_api_key: bool) -> str | Refusal:
    """The one key that the head has; with two of them nobody knows which one another reader would take."""
    bearers = request.headers.getall("Authorization", _NONE)
    others = request.headers.getall("x-api-key", _NONE) if takes_x_api_key else _NONE
    if len(bearers) + len(others) != 1:
        return Refusal.MALFORMED if bearers or others else Refusal.ABSENT
    return (bearer_token(bearers[0]) if bearers else others[0]) or Refusal.MALFORMED


def bearer_token(authorization: str) -> str:
    """Of an Authorization header (RFC 6750, section 2.1) the token; empty if it is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
