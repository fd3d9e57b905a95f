"""Who asks how much, and what is left to whom."""

from __future__ import annotations

from grafana.panels import Board, Limit, Panel, Query
from grafana.queries import now, rate, series, share, worst

_PROMPT = rate("tenant_tokens_total", 'kind="prompt"', by="tenant")
_CACHED = rate("tenant_tokens_total", 'kind="cached"', by="tenant")

BOARD = Board(
    name="tenants",
    title="Warmroute / Tenants",
    description="Tenants that have keys. Limits hold for each router; see docs/admission.md.",
    rows=(
        (
            "Traffic",
            (
                Panel(
                    title="Requests per second",
                    description="Requests that ended.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("tenant_requests_total", by="tenant"), "{{tenant}}"),),
                ),
                Panel(
                    title="Tokens per second",
                    description="As workers counted them. Cached tokens are prompt tokens, too.",
                    unit="cps",
                    queries=(Query(rate("tenant_tokens_total", by="tenant, kind"), "{{tenant}} {{kind}}"),),
                ),
                Panel(
                    title="Requests in progress",
                    description="Requests that run or wait.",
                    unit="short",
                    queries=(Query(now("tenant_in_flight", by="tenant"), "{{tenant}}"),),
                ),
                Panel(
                    title="Requests that wait",
                    description="A tenant whose requests always wait uses its whole share: raise the share or its "
                    "limits.",
                    unit="short",
                    queries=(Query(now("tenant_queued", by="tenant"), "{{tenant}}"),),
                ),
                Panel(
                    title="Storage used",
                    description="Bytes of the tenant's sessions, conversations and responses, as a share of "
                    "sessions.max_tenant_bytes. At 1 its turns are refused.",
                    unit="percentunit",
                    maximum=1,
                    limits=(Limit(0.8, "orange"), Limit(0.95, "red")),
                    queries=(
                        Query(
                            f"{worst('tenant_stored_bytes', by='tenant')} / scalar({worst('max_tenant_bytes')})",
                            "{{tenant}}",
                        ),
                    ),
                ),
                Panel(
                    title="Stored sessions and responses",
                    description="Conversations and chains of responses count as sessions.",
                    unit="short",
                    queries=(Query(worst("tenant_stored", by="tenant, kind"), "{{tenant}} {{kind}}"),),
                ),
            ),
        ),
        (
            "Caches",
            (
                Panel(
                    title="Hit ratio",
                    description="Share of each tenant's prompt tokens that were cached. Tenants share no cache unless "
                    "a salt is set for them together.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            share(_CACHED, _PROMPT),
                            "{{tenant}}",
                        ),
                    ),
                ),
                Panel(
                    title="Prompt tokens computed per second",
                    description="What each tenant costs in prefill.",
                    unit="cps",
                    kind="stack",
                    queries=(
                        Query(
                            f"{_PROMPT} - {_CACHED}",
                            "{{tenant}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Budgets and refusals",
            (
                Panel(
                    title="Left of the day's budget",
                    description="Until midnight UTC, on the router that has least. At zero the tenant is refused.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            f"min by (tenant, kind) ({series('tenant_day_tokens_left')} / {series('tenant_day_tokens')})",
                            "{{tenant}} {{kind}}",
                        ),
                    ),
                ),
                Panel(
                    title="Left of the day's budget for summaries",
                    description="On the router that has least. At zero histories are cut without summaries.",
                    unit="short",
                    queries=(Query(f"min by (tenant) ({series('tenant_summary_tokens_left')})", "{{tenant}}"),),
                ),
                Panel(
                    title="Refused by limits",
                    description="rate_limit_exceeded and budget_exceeded are the tenant's own limits. The other "
                    "reasons are the router's.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("admission_refusals_total", by="reason"), "{{reason}}"),),
                ),
                Panel(
                    title="Refused without a valid key",
                    description="Keys that are absent, malformed, unknown, disabled or expired. If many unknown keys "
                    "come from one address, somebody guesses; the audit log has the addresses.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("auth_refusals_total", by="reason"), "{{reason}}"),),
                ),
                Panel(
                    title="API keys",
                    description="Keys that are loaded.",
                    unit="short",
                    queries=(Query(now("keys_loaded", by="instance"), "{{instance}}"),),
                ),
            ),
        ),
    ),
)
