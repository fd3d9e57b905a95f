"""Lifetimes of sessions, and what a busy one does: by request, tenant and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args

from router.config.sessions import SessionsConfig
from router.core.errors import InvalidRequest
from router.core.tenants.tenant import OnBusy, TenantRules
from router.sessions.context.strategies import STRATEGIES
from router.sessions.context.view import NO_OVERRIDES, ContextOverrides

MAX_KEY_CHARS = 255
STRATEGY_HEADER, TOKENS_HEADER = "x-warmroute-context-strategy", "x-warmroute-context-tokens"


def session_lifetime_s(config: SessionsConfig, tenant: TenantRules) -> float:
    """Seconds; 0: for ever."""
    return config.lifetime_s if tenant.session_lifetime_s is None else tenant.session_lifetime_s


def read_on_busy(
    headers: Mapping[str, str], tenant: TenantRules, config: SessionsConfig, *, forks: bool = True
) -> OnBusy:
    """The request's header, else the tenant's rule, else the configured one. ``forks``: False turns fork into reject. Raises
    InvalidRequest."""
    on_busy = headers.get("x-warmroute-on-busy")
    if on_busy is None:
        on_busy = tenant.on_busy or config.on_busy
    elif on_busy not in get_args(OnBusy):
        raise InvalidRequest("x-warmroute-on-busy must be queue, reject or fork", param="x-warmroute-on-busy")
    return "reject" if on_busy == "fork" and not forks else cast(OnBusy, on_busy)


def read_overrides(headers: Mapping[str, str]) -> ContextOverrides:
    """The request's own context settings. Raises InvalidRequest."""
    strategy = headers.get(STRATEGY_HEADER)
    if strategy is None and TOKENS_HEADER not in headers:
        return NO_OVERRIDES
    if strategy is not None and strategy not in STRATEGIES:
        raise InvalidRequest(f"{STRATEGY_HEADER} must be one of {', '.join(STRATEGIES)}", param=STRATEGY_HEADER)
    tokens = headers.get(TOKENS_HEADER, "0")
    if not (tokens.isascii() and tokens.isdigit() and len(tokens) < 10):
        raise InvalidRequest(f"{TOKENS_HEADER} must be a number of tokens", param=TOKENS_HEADER)
    return ContextOverrides(strategy=strategy, max_tokens=int(tokens))


def read_idempotency_key(headers: Mapping[str, str]) -> str:
    """The key; empty: there is none. Raises InvalidRequest."""
    key = headers.get("Idempotency-Key", "")
    if len(key) > MAX_KEY_CHARS or not key.isascii() or (key and not key.isprintable()):
        raise InvalidRequest(f"Idempotency-Key must have at most {MAX_KEY_CHARS} printable ASCII characters")
    return key
