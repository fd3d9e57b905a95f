"""Finds the caller of a request by its API key. A request without a valid key is refused, never served as anonymous.

Clients get the same answer for a key that is absent, malformed, unknown, disabled or expired. The metric and the audit log
have the reason.
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
        """``takes_x_api_key``: also read ``x-api-key``, which Anthropic's clients send. Raises InvalidApiKey,
        ConnectionsLimited."""
        ...


class OpenGate:
    """The gate of a router that serves everybody."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.connections = KeyConnections(0)

    def admit(self, _request: web.BaseRequest, *, takes_x_api_key: bool = False) -> Caller:  # noqa: ARG002
        return self._caller


class KeyGate:
    """Lets in requests with a key of the keyring. ``keyring`` is replaced as a whole when the keys change. ``now``: seconds
    since the epoch."""

    def __init__(self, keyring: Keyring, audit: Audit, now: Callable[[], float], max_connections: int = 0) -> None:
        """``max_connections`` may show one key; 0 means any number."""
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
    """The keys in the head. If both headers have the same key, it counts once. If they have two keys, the caller is known when
    only one of them is valid: clients that fill both headers may send a key of another API in one."""
    keys = [bearer_token(each) for each in request.headers.getall("Authorization", _NONE)]
    if takes_x_api_key:
        keys += request.headers.getall("x-api-key", _NONE)
    return [key for key in keys if key]


def _refusal(
    request: web.BaseRequest, found: Collection[Caller | AuthRefusal], *, takes_x_api_key: bool
) -> AuthRefusal:
    """Why no key of the head was accepted. ``found`` has the result of each."""
    refusals = [each for each in found if isinstance(each, AuthRefusal)]
    if refusals:
        return next((each for each in refusals if each is not AuthRefusal.UNKNOWN), AuthRefusal.UNKNOWN)
    is_shown = "Authorization" in request.headers or (takes_x_api_key and "x-api-key" in request.headers)
    return AuthRefusal.MALFORMED if is_shown else AuthRefusal.ABSENT  # two valid keys are malformed, too


def bearer_token(authorization: str) -> str:
    """The token of an Authorization header (RFC 6750, section 2.1); empty if there is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
