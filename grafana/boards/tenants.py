"""Who asks how much, and what is left to whom."""

from __future__ import annotations

from grafana.panels import Board, Limit, Panel, Query
from grafana.queries import now, rate, series, share, worst

_PROMPT = rate("tenant_tokens_total", 'kind="prompt"', by="tenant")
_CACHED = rate("tenant_tokens_total", 'kind="cached"', by="tenant")

BOARD = Board(
    name="tenants",
    title="Warmroute / Tenants",
    description="Tenants that have keys. Limits hold for one router each; see docs/admission.md.",
    rows=(
        (
            "Traffic",
            (
                Panel(
                    title="Requests",
                    description="That ended, a second.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("tenant_requests_total", by="tenant"), "{{tenant}}"),),
                ),
                Panel(
                    title="Tokens",
                    description="As workers counted them, a second; cached ones are among the prompt's.",
                    unit="cps",
                    queries=(Query(rate("tenant_tokens_total", by="tenant, kind"), "{{tenant}} {{kind}}"),),
                ),
                Panel(
                    title="Under way",
                    description="Requests that run or wait.",
                    unit="short",
                    queries=(Query(now("tenant_in_flight", by="tenant"), "{{tenant}}"),),
                ),
                Panel(
                    title="Waiting",
                    description="Of those. A tenant that always waits is at its share: raise it, or its limits.",
                    unit="short",
                    queries=(Query(now("tenant_queued", by="tenant"), "{{tenant}}"),),
                ),
                Panel(
                    title="Stored, of what it may",
                    description="Bytes of its sessions, conversations and responses. Full, its turns are refused.",
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
                    title="How many it has stored",
                    description="Sessions, conversations and chains of responses among them; and responses.",
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
                    description="Of each tenant's prompt tokens. They share no cache, unless a salt is set for them together.",
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
                    title="Prompt tokens computed",
                    description="A second: what each tenant costs in prefill.",
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
                    description="Of the router that has least, until midnight UTC. At nothing the tenant is refused.",
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
                    title="Left of the day's budget for notes",
                    description="Of the router that has least. At nothing histories are cut without notes on what went.",
                    unit="short",
                    queries=(Query(f"min by (tenant) ({series('tenant_summary_tokens_left')})", "{{tenant}}"),),
                ),
                Panel(
                    title="Refused by limits",
                    description="rate_limit_exceeded, budget_exceeded: the tenant's own. The others are of the router.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("admission_refusals_total", by="reason"), "{{reason}}"),),
                ),
                Panel(
                    title="Refused at the door",
                    description="Keys that are absent, malformed, unknown, disabled or expired. Many unknown ones from one "
                    "address: somebody tries; the audit log has the addresses.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("auth_refusals_total", by="reason"), "{{reason}}"),),
                ),
                Panel(
                    title="Keys",
                    description="That are listed.",
                    unit="short",
                    queries=(Query(now("keys_loaded", by="instance"), "{{instance}}"),),
                ),
            ),
        ),
    ),
)
