"""Requests as Prometheus sees them: how they ended, how long they took, what was cached, what waits. Names and labels are the
public interface.

What happens on each request is counted by a bound child that is looked up once. Labels come from closed sets: a model that no
worker ever listed counts as ``other``, and so does every new combination beyond MAX_LABEL_VALUES.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Histogram

from router.core.index.cache_use import CacheMisses
from router.core.request.record import Record
from router.core.request.request import Tenant
from router.core.request.retry import RetryBudget
from router.core.request.routes import Route
from router.core.tenants.quota import Account
from router.proxy.admission import Admission
from router.runtime.metrics import MAX_LABEL_VALUES, OTHER, Row, Table, counter, gauge
from router.wire.transcript import TranscriptBudget

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
"""vLLM's own, so that the two can be laid over each other."""

DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
OVERHEAD_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
RESUMPTION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUEUE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH = 100
"""Records counted at once: about a millisecond."""

RETRY_CAUSES = ("connect", "died", "timeout", "error", "busy", "no_model")
BREAKS, ENDINGS = ("died", "timeout", "error"), ("exact", "text", "finished", "unsafe", "failed")
"""Causes and outcomes of resumptions."""
FAILURES = ("499", "500", "502", "503", "504")
"""Statuses whose series begin at zero: Prometheus sees no rise in a series that begins with one."""


@dataclass(frozen=True, slots=True)
class _Children:
    """Everything that one (route, model, status, policy, reason) counts into."""

    requests: Counter
    duration: Histogram
    first_token: Histogram
    decisions: Counter
    prompt_tokens: Counter
    predicted_tokens: Counter
    actual_tokens: Counter


class Metrics:
    """``is_known(model)`` says whether a model's name may become a label."""

    def __init__(self, registry: CollectorRegistry, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known
        self._children: dict[tuple[str, str, int, str, str], _Children] = {}
        self._pending: list[Record] = []
        self._retries = collections.Counter(dict.fromkeys(RETRY_CAUSES, 0))
        self._resumptions = collections.Counter(dict.fromkeys(product(BREAKS, ENDINGS), 0))
        self._given_up = 0
        self._add_counters(registry)
        self._add_histograms(registry)
        for route in (*Route, None):
            self._begin_requests(route.path if route else OTHER, OTHER)
        registry.register(Table(self._rows()))

    def _add_counters(self, registry: CollectorRegistry) -> None:
        add = partial(Counter, registry=registry)
        self._requests = add("warmroute_requests", "Requests by route, model and status.", ("route", "model", "status"))
        self._decisions = add("warmroute_routing_decisions", "Routing decisions by reason.", ("policy", "reason"))
        self._prompt_tokens = add(
            "warmroute_prompt_tokens",
            "Prompt tokens as workers counted them, of requests whose worker reported how many were cached.",
            ("model",),
        )
        self._predicted_tokens = add(
            "warmroute_predicted_cached_tokens",
            "Prompt tokens that the router expected in the chosen worker's cache. A share of warmroute_prompt_tokens_total.",
            ("model",),
        )
        self._actual_tokens = add(
            "warmroute_actual_cached_tokens",
            "Prompt tokens that the worker found in its cache. A share of warmroute_prompt_tokens_total.",
            ("model",),
        )

    def _add_histograms(self, registry: CollectorRegistry) -> None:
        add = partial(Histogram, registry=registry)
        self._duration = add(
            "warmroute_request_duration_seconds",
            "Time from a request's head to the last byte of its answer.",
            ("route", "model"),
            buckets=DURATION_BUCKETS,
        )
        self._first_token = add(
            "warmroute_time_to_first_token_seconds",
            "Time from a request's head to the first event of its stream (TTFT).",
            ("model", "policy"),
            buckets=TTFT_BUCKETS,
        )
        self._decide = add(
            "warmroute_router_overhead_seconds",
            "Time from a request's head until the router ranked its workers. The time to receive the body is included.",
            ("phase",),
            buckets=OVERHEAD_BUCKETS,
        ).labels("decide")
        self._resumption_gap = add(
            "warmroute_resumption_gap_seconds",
            "Time from the break of a stream to the first event from another worker.",
            buckets=RESUMPTION_BUCKETS,
        )
        self._queue_wait = add(
            "warmroute_queue_wait_seconds",
            "Time that a request waited for room or for a worker. Requests that did not wait are not counted.",
            buckets=QUEUE_BUCKETS,
        )

    def _rows(self) -> Iterable[Row]:
        return (
            counter("retries", "Attempts after a request's first, by cause.", lambda: self._retries, "cause"),
            counter(
                "given_up_requests", "Requests given up: too many workers died under them.", lambda: self._given_up
            ),
            counter(
                "resumptions", "Broken streams by cause and outcome.", lambda: self._resumptions, "cause", "outcome"
            ),
        )

    def _begin_requests(self, route: str, model: str) -> None:
        for status in FAILURES:
            self._requests.labels(route, model, status)

    def observe(self, record: Record) -> None:
        """The record is counted a little later with others: a batch costs half of what single records cost."""
        self._pending.append(record)
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        pending, self._pending = self._pending, []
        for record in pending:
            self._count(record)

    def _count(self, record: Record) -> None:
        key = (record.route.path, record.model, record.status, record.policy, record.reason)
        children = self._children.get(key) or self._bind(key)
        children.requests.inc()
        children.duration.observe(record.ended_at - record.started_at)
        if record.decided_at:
            self._decide.observe(record.decided_at - record.started_at - record.queued_s)
            children.decisions.inc()
        if record.queued_s:
            self._queue_wait.observe(record.queued_s)
        if record.stream and record.first_byte_at and record.status == 200:
            children.first_token.observe(record.first_byte_at - record.started_at)
        for cause in record.retries:
            self._retries[cause] += 1
        for resumption in record.resumptions:
            self._resumptions[resumption.cause, resumption.outcome] += 1
            if resumption.gap_s:
                self._resumption_gap.observe(resumption.gap_s)
        self._given_up += record.given_up
        if record.actual_cached_tokens is not None:
            children.prompt_tokens.inc(record.prompt_tokens)
            children.predicted_tokens.inc(min(record.predicted_cached_tokens, record.prompt_tokens))
            children.actual_tokens.inc(record.actual_cached_tokens)

    def observe_refusal(self, route: str, status: int) -> None:
        """A request that never reached dispatch."""
        self._requests.labels(route, OTHER, str(status)).inc()

    def _bind(self, key: tuple[str, str, int, str, str]) -> _Children:
        route, given, status, policy, reason = key
        model = given if self._is_known(given) and len(self._children) < MAX_LABEL_VALUES else OTHER
        self._begin_requests(route, model)
        children = _Children(
            requests=self._requests.labels(route, model, str(status)),
            duration=self._duration.labels(route, model),
            first_token=self._first_token.labels(model, policy),
            decisions=self._decisions.labels(policy, reason or "none"),
            prompt_tokens=self._prompt_tokens.labels(model),
            predicted_tokens=self._predicted_tokens.labels(model),
            actual_tokens=self._actual_tokens.labels(model),
        )
        if model == given:
            self._children[key] = children
        return children


def dispatch_rows(budget: RetryBudget, misses: CacheMisses, kept: TranscriptBudget) -> Iterable[Row]:
    return (
        gauge("retries_in_flight", "Retries in progress that count against the budget.", lambda: budget.retrying),
        gauge("retry_budget", "Retries that the budget allows now.", lambda: budget.left),
        gauge("retry_budget_max", "Most retries that the budget saves up.", lambda: budget.most),
        counter(
            "uncached_tokens",
            "Prompt tokens that workers computed, by reason: new, cached elsewhere, or gone from the chosen worker's cache.",
            lambda: misses.tokens,
            "reason",
        ),
        gauge("resumption_kept_bytes", "Bytes kept of streams for their resumption.", lambda: kept.bytes),
        gauge(
            "resumption_max_kept_bytes",
            "Most bytes kept of all streams together (resumption.max_total_kept_bytes).",
            lambda: kept.max_bytes,
        ),
    )


def queue_rows(admission: Admission) -> Iterable[Row]:
    queue = admission.queue
    return (
        gauge("queue_depth", "Requests that wait for room or for a worker.", lambda: len(queue)),
        gauge("queue_max", "Most requests that may wait (admission.max_queued).", lambda: queue.max_requests),
        gauge("queue_bytes", "Bytes of the bodies of waiting requests.", lambda: queue.bytes),
        gauge("queue_max_bytes", "Most bytes of waiting bodies (admission.max_queued_bytes).", lambda: queue.max_bytes),
        gauge("warm_waits", "Requests that wait for the worker that holds their prefix.", admission.warm_waiting),
        gauge("busy_waits", "Requests that wait because all workers are busy.", lambda: admission.pausing),
        counter(
            "admission_refusals",
            "Requests that the router refused for a tenant's limits, a full queue, a long wait or a missing worker, by reason.",
            lambda: admission.refusals,
            "reason",
        ),
    )


def tenant_rows(admission: Admission, wall_clock: Callable[[], float]) -> Iterable[Row]:
    """Only tenants that have keys are labels. ``wall_clock``: Unix time, which says what day it is."""
    accounts = admission.limits.ledger.accounts

    def each(read: Callable[[Account], float]) -> Callable[[], Mapping[str, float]]:
        return lambda: {tenant: read(account) for tenant, account in accounts.items()}

    def tokens() -> Mapping[tuple[str, str], float]:
        return {
            (tenant, kind): getattr(account.totals, f"{kind}_tokens")
            for tenant, account in accounts.items()
            for kind in ("prompt", "cached", "completion")
        }

    return (
        gauge(
            "tenant_in_flight",
            "Requests of the tenant in progress or waiting.",
            each(lambda account: account.in_flight),
            "tenant",
        ),
        gauge(
            "tenant_queued",
            "Requests of the tenant that wait for room or for a worker.",
            lambda: {tenant: admission.queue.waiting_of(tenant) for tenant in accounts},
            "tenant",
        ),
        counter(
            "tenant_requests", "Ended requests of the tenant.", each(lambda account: account.totals.requests), "tenant"
        ),
        counter(
            "tenant_tokens",
            "Tokens of the tenant's requests as workers counted them. Cached tokens are prompt tokens, too.",
            tokens,
            "tenant",
            "kind",
        ),
        counter(
            "tenant_shortened",
            "Requests that got a shorter answer because the tenant was near its limit: raise it if that is not meant.",
            each(lambda account: account.totals.shortened),
            "tenant",
        ),
        gauge(
            "tenant_day_tokens_left",
            "Tokens that the tenant may still use until midnight UTC.",
            lambda: {labels: left for labels, left, _limit in _days(accounts, wall_clock())},
            "tenant",
            "kind",
        ),
        gauge(
            "tenant_day_tokens",
            "Tokens that the tenant may use each day.",
            lambda: {labels: limit for labels, _left, limit in _days(accounts, wall_clock())},
            "tenant",
            "kind",
        ),
    )


def _days(accounts: Mapping[Tenant, Account], wall_s: float) -> Iterator[tuple[tuple[str, str], float, int]]:
    """Labels, tokens left and limit of each day's budget."""
    for tenant, account in accounts.items():
        for kind, left, limit in account.day_tokens(wall_s):
            yield (tenant, kind), left, limit
