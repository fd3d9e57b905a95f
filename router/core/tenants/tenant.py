"""A tenant's rules, and what is derived of its key for each request. They change as a whole when the key file changes."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from router.core.request.request import NO_TENANT, Tenant

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
OnBusy = Literal["queue", "reject", "fork"]
"""How a turn behaves while another turn of its session is under way."""
ContextStrategy = Literal["none", "window", "summary", "recall", "hybrid"]
"""How a session's history is kept within its model's window."""
Limit = Annotated[int, Meta(ge=1, le=10**12)]
MAX_CONTEXT_TOKENS = 10**9
ContextTokens = Annotated[int, Meta(ge=0, le=MAX_CONTEXT_TOKENS)]


class TenantRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None and an empty set stand for "no limit"; every limit holds for one replica."""

    tenant: Tenant
    models: Annotated[frozenset[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=1000)] = (
        frozenset()
    )
    """Models that its keys may use; empty: all."""
    sharing_group: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{0,64}\Z")] = ""
    """Tenants of one group share KV cache entries; empty: this tenant shares with no other."""
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    """Waiting requests of a higher one go first, whatever the shares."""
    share: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    """Weight among tenants of equal priority that wait; > 0."""
    max_in_flight: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    """Requests under way at once, waiting ones included; 0: any number."""
    requests_per_minute: Limit | None = None
    prompt_tokens_per_minute: Limit | None = None
    completion_tokens_per_minute: Limit | None = None
    prompt_tokens_per_day: Limit | None = None
    completion_tokens_per_day: Limit | None = None
    cached_token_weight: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """How much a prompt token that hit the cache counts, 0 … 1."""
    on_busy: OnBusy | None = None
    """How a turn behaves while another turn of its session is under way; None: as configured for all."""
    session_lifetime_s: Annotated[float, Meta(ge=0, le=10**9)] | None = None
    """How long a session that clients name is kept after its last use; 0: for ever; None: as configured for all."""
    context_strategy: ContextStrategy | None = None
    """How its sessions' histories are kept within the window; None: as configured for all."""
    context_high_tokens: ContextTokens = 0
    """A session's history is cut when it is longer; 0: as configured for all."""
    context_low_tokens: ContextTokens = 0
    """Length of a history after a cut; 0: as configured for all."""
    context_max_tokens: ContextTokens = 0
    """Longest prompt of a session; 0: as configured for all."""
    summary_model: Annotated[str, Meta(max_length=256)] = ""
    """The model that summarises what was cut; empty: as configured for all."""
    summary_tokens_per_day: Limit | None = None
    """Tokens, of prompts and summaries, that this may cost; None: as configured for all."""
    sees_decisions: bool = False
    """Its answers carry x-warmroute-reason and x-warmroute-predicted-cached-tokens."""

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


EVERYBODY = TenantRules(tenant=NO_TENANT)
"""All clients of a router that asks for no keys: they cannot be told apart, so no limit by tenant applies."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant of a request, and its cache salts. Made once for each tenant, never for a request."""

    rules: TenantRules
    scope: str = ""
    """Requests of one scope share cached prefixes: a sharing group, or one tenant. A group and a tenant of one name differ.
    Empty: all clients share."""
    salt_key: bytes = b""
    """32 bytes from which all cache salts of the scope are derived; empty: no request is salted."""
    salt: str = ""
    """The cache salt of requests that name none of their own."""

    def salt_for(self, own: str) -> str:
        """The ``cache_salt`` for the worker. The client's ``own`` separates requests within its scope, and never leads out of
        it. Without a salt key it goes on unchanged."""
        if not self.salt_key:
            return own
        return _salt(self.salt_key, own) if own else self.salt


def make_caller(rules: TenantRules, salt_secret: bytes) -> Caller:
    """``salt_secret``: must be the same on all replicas, or they share no cached prefixes; empty: no salts."""
    scope = f"group:{rules.sharing_group}" if rules.sharing_group else f"tenant:{rules.tenant}"
    if not salt_secret:
        return Caller(rules=rules, scope=scope if rules.tenant else "")
    key = hmac.digest(salt_secret, scope.encode(), "sha256")
    return Caller(rules=rules, scope=scope, salt_key=key, salt=_salt(key, ""))


def _salt(key: bytes, own: str) -> str:
    """43 characters of base64url: workers limit the length of a salt, and refuse some characters."""
    digest = hmac.digest(key, own.encode("utf-8", "surrogatepass"), "sha256")
    return urlsafe_b64encode(digest).decode().rstrip("=")
