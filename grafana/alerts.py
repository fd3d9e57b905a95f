"""Recording and alerting rules: what is worth being woken for, and what can wait for the morning.

An objective burns when so much of what it allows is used up that the rest of the month is in danger; two windows each, so that
an alert comes soon and goes soon. Windows and factors are those of Google's "The Site Reliability Workbook", chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from grafana.boards.latency import GOOD_S

ERRORS_ALLOWED, SLOW_ALLOWED = 0.001, 0.01
"""Of requests that may end with a 5xx; of streams whose first token may come later than GOOD_S."""

WINDOWS = ("5m", "30m", "1h", "6h")
BURNS = (("Fast", "1h", "5m", 14.4, "2m", "page"), ("Slow", "6h", "30m", 6.0, "15m", "ticket"))
"""Name, long and short window, factor, for how long, severity: a month's allowance gone in two days, or in five."""

Severity = Literal["page", "ticket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """``waits``: how long it must hold. ``summary``: one line, of what is wrong; the runbook page says what to do."""

    name: str
    expr: str
    waits: str
    severity: Severity
    summary: str
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """What to do, from the project's top."""
        return f"docs/runbooks/{self.name.removeprefix('Warmroute').removesuffix('Fast').removesuffix('Slow')}.md"

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.waits,
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {"summary": self.summary, "runbook": self.page},
        }


def _by_job(metric: str, window: str, *matchers: str) -> str:
    return f"sum by (job) (rate(warmroute_{metric}{{{','.join(matchers)}}}[{window}]))".replace("{}", "")


def _errors(window: str) -> str:
    requests = _by_job("requests_total", window)
    errors = _by_job("requests_total", window, 'status=~"5.."')
    return f"({errors} or 0 * {requests}) / ({requests} > 0)"


def _slow(window: str) -> str:
    soon = _by_job("time_to_first_token_seconds_bucket", window, f'le="{GOOD_S}"')
    return f"1 - {soon} / ({_by_job('time_to_first_token_seconds_count', window)} > 0)"


def _hits(window: str) -> str:
    cached = _by_job("actual_cached_tokens_total", window)
    return f"{cached} / ({_by_job('prompt_tokens_total', window)} > 0)"


RECORDED = {
    **{f"warmroute:errors:ratio_rate{window}": _errors(window) for window in WINDOWS},
    **{f"warmroute:slow_first_tokens:ratio_rate{window}": _slow(window) for window in WINDOWS},
    "warmroute:cached_tokens:ratio_rate30m": _hits("30m"),
    "warmroute:worker_requests:rate15m": "sum by (job, worker) (rate(warmroute_worker_requests_total[15m]))",
}


def _burning(share: str, allowed: float, name: str, summary: str) -> list[Alert]:
    return [
        Alert(
            name=f"Warmroute{name}{speed}",
            expr=f"{share}{long} > {factor * allowed:g} and {share}{short} > {factor * allowed:g}",
            waits=waits,
            severity="page" if severity == "page" else "ticket",
            summary=summary,
        )
        for speed, long, short, factor, waits, severity in BURNS
    ]


ALERTS = (
    Alert(
        name="WarmrouteDown",
        expr='up{job=~".*warmroute.*"} == 0',
        waits="2m",
        severity="page",
        summary="The router {{ $labels.instance }} does not answer Prometheus.",
    ),
    *_burning(
        "warmroute:errors:ratio_rate",
        ERRORS_ALLOWED,
        "ErrorsBurn",
        "{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} end with a server error.",
    ),
    *_burning(
        "warmroute:slow_first_tokens:ratio_rate",
        SLOW_ALLOWED,
        "SlowFirstTokensBurn",
        f"{{{{ $value | humanizePercentage }}}} of the streams of {{{{ $labels.job }}}} begin later than {GOOD_S} s.",
    ),
    Alert(
        name="WarmrouteAllWorkersOut",
        expr='sum by (job, instance) (warmroute_worker_state{state="up"}) == 0',
        waits="1m",
        severity="page",
        summary="No worker is up for {{ $labels.instance }}: all are ejected, or none was found.",
    ),
    Alert(
        name="WarmrouteHitRatioFell",
        expr="warmroute:cached_tokens:ratio_rate30m < 0.7 * (warmroute:cached_tokens:ratio_rate30m offset 1d)"
        " and warmroute:cached_tokens:ratio_rate30m offset 1d > 0.1",
        waits="30m",
        severity="ticket",
        summary="Caches of {{ $labels.job }} hit {{ $value | humanizePercentage }}, a third less than a day ago.",
    ),
    Alert(
        name="WarmrouteWorkerTooHot",
        expr="warmroute:worker_requests:rate15m"
        " > on (job) group_left () 3 * avg by (job) (warmroute:worker_requests:rate15m)"
        " and on (job) count by (job) (warmroute:worker_requests:rate15m) > 3"
        f" and on (job) warmroute:slow_first_tokens:ratio_rate30m > {SLOW_ALLOWED:g}",
        waits="15m",
        severity="ticket",
        summary="The worker {{ $labels.worker }} gets three times its share, and first tokens are slow.",
    ),
    Alert(
        name="WarmrouteStoreDown",
        expr="min by (job, instance) (warmroute_store_up) == 0",
        waits="1m",
        severity="page",
        summary="{{ $labels.instance }} does not reach the session store: sessions fail, other requests do not.",
    ),
    Alert(
        name="WarmrouteJournalGrows",
        expr="warmroute_write_behind_seconds > 120 or warmroute_journal_bytes > 0.5 * (warmroute_max_journal_bytes > 0)",
        waits="1m",
        severity="page",
        summary="Ends of turns wait for the store of {{ $labels.instance }}, on its disk alone.",
    ),
    Alert(
        name="WarmrouteBudgetNearlySpent",
        expr="min by (job, tenant, kind) (warmroute_tenant_day_tokens_left / (warmroute_tenant_day_tokens > 0)) < 0.1",
        waits="1m",
        severity="ticket",
        summary="{{ $labels.tenant }} has {{ $value | humanizePercentage }} of its {{ $labels.kind }} tokens of the day left.",
    ),
    Alert(
        name="WarmrouteRetriesSpent",
        expr="warmroute_retry_budget < 1",
        waits="2m",
        severity="ticket",
        summary="{{ $labels.instance }} has no retries left: workers' failures reach clients.",
    ),
    Alert(
        name="WarmrouteStreamsCutOff",
        expr='sum by (job) (rate(warmroute_resumptions_total{outcome=~"unsafe|failed"}[15m])) > 0.02',
        waits="5m",
        severity="ticket",
        summary="Streams of {{ $labels.job }} break and are not continued, {{ $value | humanize }} a second.",
    ),
    Alert(
        name="WarmrouteSourcesUnreadable",
        expr="sum by (job, instance, source) (rate(warmroute_workers_reload_failures_total[10m])) > 0"
        " or sum by (job, instance) (rate(warmroute_keys_reload_failures_total[10m])) > 0"
        " or sum by (job, instance) (rate(warmroute_certificate_reload_failures_total[10m])) > 0",
        waits="10m",
        severity="ticket",
        summary="{{ $labels.instance }} cannot read its list of workers, its keys or its certificate: the last one holds.",
    ),
    Alert(
        name="WarmrouteNotesFail",
        expr='sum by (job) (rate(warmroute_compactions_total{result=~"failed|rejected_.*|over_budget"}[30m]))'
        " > 0.5 * (sum by (job) (rate(warmroute_compactions_total[30m])) > 0)",
        waits="30m",
        severity="ticket",
        summary="Most histories of {{ $labels.job }} are cut without notes on what went.",
    ),
    Alert(
        name="WarmrouteTasksFail",
        expr="sum by (job, instance, task) (rate(warmroute_background_failures_total[10m])) > 0",
        waits="10m",
        severity="ticket",
        summary="The task {{ $labels.task }} of {{ $labels.instance }} fails again and again.",
    ),
)


def rules() -> dict[str, Any]:
    """As Prometheus reads them; a PrometheusRule's spec is the same."""
    return {
        "groups": [
            {
                "name": "warmroute-shares",
                "rules": [{"record": name, "expr": expr} for name, expr in RECORDED.items()],
            },
            {"name": "warmroute-alerts", "rules": [alert.rule() for alert in ALERTS]},
        ]
    }
