"""Who asks, and what that tenant may: known from the API key alone, and replaced as a whole when its file changes."""

from __future__ import annotations

import msgspec

from router.core.request import NO_TENANT, Tenant


class TenantRules(msgspec.Struct, frozen=True, kw_only=True):
    """None and an empty set stand for "no limit"; every limit holds for one replica."""

    tenant: Tenant
    models: frozenset[str] = frozenset()
    """Models that its keys may use; empty: all."""
    sharing_group: str = ""
    """Tenants of one group share KV cache entries; empty: this tenant shares with nobody."""
    priority: int = 0
    """Waiting requests of a higher one go first, whatever the shares."""
    share: float = 1.0
    """Weight among tenants of equal priority that wait; > 0."""
    max_in_flight: int | None = None
    requests_per_minute: int | None = None
    prompt_tokens_per_minute: int | None = None
    completion_tokens_per_minute: int | None = None
    prompt_tokens_per_day: int | None = None
    completion_tokens_per_day: int | None = None
    cached_token_weight: float = 1.0
    """What a prompt token that hit the cache counts as, 0 … 1."""
    sees_decisions: bool = False
    """Its answers carry x-warmroute-reason and x-warmroute-predicted-cached-tokens."""


EVERYBODY = TenantRules(tenant=NO_TENANT)
"""All clients of a router that asks for no keys: nobody can be told apart, so nothing is limited by tenant."""
