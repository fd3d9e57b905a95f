"""Who is asking: the key in a request's head → Caller. Whoever cannot be told is refused, never taken for nobody.

Clients hear the same of a key that is absent, malformed, unknown, disabled or expired; the metric and the audit log know
which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Protocol, cast

from aiohttp import web

from router.core.errors import InvalidApiKey
from router.core.tenants.keyring import AuthRefusal, Keyring
from router.core.tenants.tenant import Caller
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
        self.refusals = dict.fromkeys(AuthRefusal, 0)

    def admit(self, request: web.BaseRequest, *, takes_x_api_key: bool = False) -> Caller:
        keys, now = _presented(request, takes_x_api_key=takes_x_api_key), self._now()
        found = {digest: self.keyring.find(digest, now) for digest in map(_digest, keys)}
        callers = [(digest, caller) for digest, caller in found.items() if isinstance(caller, Caller)]
        if len(callers) == 1:
            digest, caller = callers[0]
            self.connections.claim(cast(Connection, request.protocol), digest)
            return caller
        refusal = _refusal(request, found.values(), takes_x_api_key=takes_x_api_key)
        self.refusals[refusal] += 1
        self._audit.count("authentication refused", request.remote, reason=refusal.value)
        raise InvalidApiKey("a valid API key is required")


def _presented(request: web.BaseRequest, *, takes_x_api_key: bool) -> list[str]:
    """The keys that the head has: one, where both headers have the same. Of two different ones the caller is in no doubt where
    one alone opens: clients that fill both headers may have the other of somebody else's API."""
    keys = [bearer_token(each) for each in request.headers.getall("Authorization", _NONE)]
    if takes_x_api_key:
        keys += request.headers.getall("x-api-key", _NONE)
    return [key for key in keys if key]


def _refusal(
    request: web.BaseRequest, found: Collection[Caller | AuthRefusal], *, takes_x_api_key: bool
) -> AuthRefusal:
    """Why no key of the head is taken: ``found`` has what each opens."""
    refusals = [each for each in found if isinstance(each, AuthRefusal)]
    if refusals:
        return next((each for each in refusals if each is not AuthRefusal.UNKNOWN), AuthRefusal.UNKNOWN)
    is_shown = "Authorization" in request.headers or (takes_x_api_key and "x-api-key" in request.headers)
    return AuthRefusal.MALFORMED if is_shown else AuthRefusal.ABSENT  # malformed: also two keys that would both open


def bearer_token(authorization: str) -> str:
    """Of an Authorization header (RFC 6750, section 2.1) the token; empty if it is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
