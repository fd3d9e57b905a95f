"""Alerting rules: what is worth being woken for, and what can wait for the morning.

An objective burns when so much of what it allows is used up that the rest of the month is in danger; two windows each, so that
an alert comes soon and goes soon. Windows and factors are those of Google's "The Site Reliability Workbook", chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from grafana.boards.latency import GOOD_S
from grafana.shares import CUT_OFF, OF, RECORDED, rate

ERRORS_ALLOWED, SLOW_ALLOWED = 0.001, 0.01
"""Of requests that may end with a 5xx, or as half a stream; of streams whose first token may come later than GOOD_S."""

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


FEW, FEW_REQUESTS = 10, 100
"""Less than so many failures, or requests in half an hour, say nothing of a share: one of two is half."""

MANY = f"warmroute:requests:rate30m > {FEW_REQUESTS} / 1800"


LEFT_ALLOWED = 0.25
"""Of requests, those whose clients may leave before any of the answer is there. An engine that hangs fails nothing else."""

LEFT = rate("requests_total", "15m", 'status="499"')

NOTES_FAILED = "failed|rejected_.*|over_budget"


def _notes(results: str) -> str:
    """A second: looks at histories that came to that."""
    return rate("compactions_total", "30m", f'result=~"{results}"')


def _burning(name: str, of: str, allowed: float, summary: str) -> list[Alert]:
    return [
        Alert(
            name=f"Warmroute{name}{speed}",
            expr=f"{of}:ratio_rate{long} > {factor * allowed:g} and {of}:ratio_rate{short} > {factor * allowed:g}"
            f" and {of}:rate{long} > {FEW} / {hours * 3600}",
            waits=waits,
            severity="page" if severity == "page" else "ticket",
            summary=summary,
        )
        for speed, long, short, factor, waits, severity in BURNS
        for hours in [int(long.removesuffix("h"))]
    ]


ALERTS = (
    Alert(
        name="WarmrouteDown",
        expr='up{job=~".*warmroute.*"} == 0'
        f" or up == 0 and on ({OF}, instance) last_over_time(warmroute_build_info[1d])",
        waits="2m",
        severity="page",
        summary="The router {{ $labels.instance }} does not answer Prometheus.",
    ),
    Alert(
        name="WarmrouteAbsent",
        expr=f"(group by ({OF}) (last_over_time(warmroute_build_info[1h]))"
        f" unless group by ({OF}) (warmroute_build_info)) or on () absent(warmroute_build_info)",
        waits="5m",
        severity="page",
        summary="Prometheus has no figures of any router{{ with $labels.job }} of {{ . }}{{ end }}: nothing else can fire.",
    ),
    *_burning(
        "ErrorsBurn",
        "warmroute:errors",
        ERRORS_ALLOWED,
        "{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} end with a server error, or are cut off.",
    ),
    *_burning(
        "SlowFirstTokensBurn",
        "warmroute:slow_first_tokens",
        SLOW_ALLOWED,
        f"{{{{ $value | humanizePercentage }}}} of the streams of {{{{ $labels.job }}}} begin later than {GOOD_S} s.",
    ),
    Alert(
        name="WarmrouteClientsLeave",
        expr=f"{LEFT} > {LEFT_ALLOWED} * {rate('requests_total', '15m')} and {LEFT} > {FEW} / 900",
        waits="5m",
        severity="page",
        summary="Clients of {{ $labels.job }} leave before their answers begin, {{ $value | humanize }} a second.",
    ),
    Alert(
        name="WarmrouteAllWorkersOut",
        expr=f'(sum by ({OF}, instance) (warmroute_worker_state{{state="up"}})'
        f" or 0 * group by ({OF}, instance) (warmroute_build_info)) == 0",
        waits="1m",
        severity="page",
        summary="No worker is up for {{ $labels.instance }}: all are ejected, or none was found.",
    ),
    Alert(
        name="WarmrouteHitRatioFell",
        expr="warmroute:cached_tokens:ratio_rate30m < 0.7 * (warmroute:cached_tokens:ratio_rate30m offset 1d)"
        " and warmroute:cached_tokens:ratio_rate30m offset 1d > 0.1"
        f" and {MANY} and {MANY.replace(' >', ' offset 1d >')}",
        waits="30m",
        severity="ticket",
        summary="Caches of {{ $labels.job }} hit {{ $value | humanizePercentage }}, a third less than a day ago.",
    ),
    Alert(
        name="WarmrouteWorkerTooHot",
        expr="warmroute:worker_requests:rate15m"
        f" > on ({OF}) group_left () 3 * avg by ({OF}) (warmroute:worker_requests:rate15m)"
        f" and on ({OF}) count by ({OF}) (warmroute:worker_requests:rate15m) > 3"
        f" and on ({OF}) warmroute:slow_first_tokens:ratio_rate30m > {SLOW_ALLOWED:g}"
        f" and on ({OF}) {MANY}",
        waits="15m",
        severity="ticket",
        summary="The worker {{ $labels.worker }} gets three times its share, and first tokens are slow.",
    ),
    Alert(
        name="WarmrouteStoreDown",
        expr=f"min by ({OF}, instance) (warmroute_store_up) == 0",
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
        expr=f"min by ({OF}, tenant, kind) (warmroute_tenant_day_tokens_left / (warmroute_tenant_day_tokens > 0)) < 0.1",
        waits="1m",
        severity="ticket",
        summary="{{ $labels.tenant }} has {{ $value | humanizePercentage }} of its {{ $labels.kind }} tokens of the day left.",
    ),
    Alert(
        name="WarmrouteRetriesSpent",
        expr=f"avg_over_time(warmroute_retry_budget[5m]) < 1 and on ({OF}, instance) warmroute_retry_budget_max > 0"
        f" and on ({OF}, instance)"
        f' sum by ({OF}, instance) (rate(warmroute_requests_total{{status=~"5.."}}[5m])) > 0',
        waits="2m",
        severity="ticket",
        summary="{{ $labels.instance }} has no retries left: workers' failures reach clients.",
    ),
    Alert(
        name="WarmrouteStreamsCutOff",
        expr=f"{rate('resumptions_total', '30m', CUT_OFF)} > {ERRORS_ALLOWED:g} * warmroute:requests:rate30m"
        f" and {rate('resumptions_total', '30m', CUT_OFF)} > {FEW} / 1800",
        waits="5m",
        severity="ticket",
        summary="Streams of {{ $labels.job }} break and are not continued, {{ $value | humanize }} a second.",
    ),
    Alert(
        name="WarmrouteSourcesUnreadable",
        expr=f"sum by ({OF}, instance, source) (rate(warmroute_workers_reload_failures_total[10m])) > 0"
        f" or sum by ({OF}, instance) (rate(warmroute_keys_reload_failures_total[10m])) > 0"
        f" or sum by ({OF}, instance) (rate(warmroute_certificate_reload_failures_total[10m])) > 0",
        waits="10m",
        severity="ticket",
        summary="{{ $labels.instance }} cannot read its list of workers, its keys or its certificate: the last one holds.",
    ),
    Alert(
        name="WarmrouteSummariesFail",
        expr=f"{_notes(NOTES_FAILED)} > 0.5 * ({_notes(f'summarized|pending|{NOTES_FAILED}')} > 0)",
        waits="30m",
        severity="ticket",
        summary="Most histories of {{ $labels.job }} that should have notes on what went have none.",
    ),
    Alert(
        name="WarmrouteTasksFail",
        expr=f"sum by ({OF}, instance, task) (rate(warmroute_background_failures_total[10m])) > 0",
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
