"""Records and the fleet's state as Prometheus sees them. Names and labels are the public interface.

Whatever happens on each request is a bound child, looked up once; what can be read when Prometheus asks (the fleet, the
index) is read then, and costs requests nothing. Labels come from closed sets: models that no worker ever listed count as
``other``, and so does every new combination beyond the limit.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from router.core.fleet.fleet import Fleet
from router.core.fleet.health import Cause, WorkerState
from router.core.index.cache_use import CacheMisses, CacheUse
from router.core.index.prefix_index import PrefixIndex
from router.core.request.record import Record
from router.core.request.retry import RetryBudget
from router.core.request.routes import Route
from router.core.tenants.keyring import AuthRefusal
from router.core.tenants.memory import MemoryBudget
from router.runtime.series import counter

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
"""vLLM's own, so that the two can be laid over each other."""

DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
OVERHEAD_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
GAP_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0)
RESUMPTION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUEUE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MAX_LABEL_VALUES = 1000
BATCH = 100
"""Records counted at once: about a millisecond."""

CUT_CAUSES = ("head_timeout", "head_size", "body_timeout", "too_many", "write_stall")
RETRY_CAUSES = ("connect", "died", "timeout", "error", "busy", "no_model")
RESUMPTION_CAUSES = ("died", "timeout", "error")
RESUMPTION_OUTCOMES = ("exact", "text", "finished", "unsafe", "failed")
FAILURES = ("499", "500", "502", "503", "504")
"""Statuses that are there, at zero, before the first of them: Prometheus sees no rise in a series that begins with one."""

OTHER = "other"


class Gaps:
    """Times between a stream's reads, counted by bucket: a third of what a histogram of the library costs."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_BUCKETS) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(GAP_BUCKETS, seconds)] += 1
        self.total_s += seconds


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
        self._registry = registry
        self._is_known = is_known
        self._children: dict[tuple[str, str, int, str, str], _Children] = {}
        self._gaps: dict[str, Gaps] = {}
        self._pending: list[Record] = []
        self._scraping = asyncio.Lock()
        self._requests = Counter(
            "warmroute_requests", "Requests by how they ended.", ("route", "model", "status"), registry=registry
        )
        self._duration = Histogram(
            "warmroute_request_duration_seconds",
            "From the request's head to the last byte of its answer.",
            ("route", "model"),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._first_token = Histogram(
            "warmroute_time_to_first_token_seconds",
            "From the request's head to the first event of its stream.",
            ("model", "policy"),
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        overhead = Histogram(
            "warmroute_router_overhead_seconds",
            "Time from the request's head until its workers were ranked; includes waiting for its body.",
            ("phase",),
            buckets=OVERHEAD_BUCKETS,
            registry=registry,
        )
        self._decide = overhead.labels("decide")
        self._decisions = Counter(
            "warmroute_routing_decisions", "Decisions by policy and reason.", ("policy", "reason"), registry=registry
        )
        self._retries = Counter(
            "warmroute_retries", "Attempts after the first, by cause.", ("cause",), registry=registry
        )
        self._given_up = Counter(
            "warmroute_given_up_requests",
            "Requests that were given up since workers died under them, one after another.",
            registry=registry,
        )
        self._resumptions = Counter(
            "warmroute_resumptions",
            "Streams that broke after their first event, by why, and by how they went on or why not.",
            ("cause", "outcome"),
            registry=registry,
        )
        self._resumption_gap = Histogram(
            "warmroute_resumption_gap_seconds",
            "From the break of a stream to the first event of another worker.",
            buckets=RESUMPTION_BUCKETS,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "warmroute_queue_wait_seconds",
            "How long requests waited for room or for a worker, of those that did.",
            buckets=QUEUE_BUCKETS,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "warmroute_prompt_tokens", "Prompt tokens as workers counted them.", ("model",), registry=registry
        )
        self._predicted_tokens = Counter(
            "warmroute_predicted_cached_tokens",
            "Of those, tokens that were expected to be cached on the chosen worker.",
            ("model",),
            registry=registry,
        )
        self._actual_tokens = Counter(
            "warmroute_actual_cached_tokens", "Of those, tokens that were cached.", ("model",), registry=registry
        )
        self._cuts = Counter(
            "warmroute_cut_connections",
            "Clients' connections that the router ended for what they did, by why.",
            ("cause",),
            registry=registry,
        )
        self._begin_failures()
        registry.register(_GapCollector(self._gaps))

    def _begin_failures(self) -> None:
        for cause in CUT_CAUSES:
            self._cuts.labels(cause)
        for cause in RETRY_CAUSES:
            self._retries.labels(cause)
        for cause in RESUMPTION_CAUSES:
            for outcome in RESUMPTION_OUTCOMES:
                self._resumptions.labels(cause, outcome)
        for route in (*Route, None):
            self._begin_requests(route.path if route else OTHER, OTHER)

    def _begin_requests(self, route: str, model: str) -> None:
        for status in FAILURES:
            self._requests.labels(route, model, status)

    def observe(self, record: Record) -> None:
        """Counted a little later, many at once: in one go they cost half of what they cost one by one."""
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
            self._retries.labels(cause).inc()
        for resumption in record.resumptions:
            self._resumptions.labels(resumption.cause, resumption.outcome).inc()
            if resumption.gap_s:
                self._resumption_gap.observe(resumption.gap_s)
        if record.given_up:
            self._given_up.inc()
        if record.actual_cached_tokens is not None:
            children.prompt_tokens.inc(record.prompt_tokens)
            children.predicted_tokens.inc(min(record.predicted_cached_tokens, record.prompt_tokens))
            children.actual_tokens.inc(record.actual_cached_tokens)

    def observe_refusal(self, route: str, status: int) -> None:
        """A request that never reached dispatch."""
        self._requests.labels(route, OTHER, str(status)).inc()

    def observe_cut(self, cause: str) -> None:
        """One of CUT_CAUSES."""
        self._cuts.labels(cause).inc()

    def gaps(self, model: str) -> Callable[[float], None]:
        gaps = self._gaps.get(model)
        if gaps is None:
            label = self._model_label(model) if len(self._gaps) < MAX_LABEL_VALUES else OTHER
            gaps = self._gaps.setdefault(label, Gaps())
        return gaps.observe

    async def exposition(self) -> tuple[bytes, str]:
        """The text and its content type. Families are read one by one on the loop, which serves others in between, and written
        in a thread; one scrape at a time."""
        async with self._scraping:
            self.flush()
            families = []
            for family in self._registry.collect():
                families.append(family)
                await asyncio.sleep(0)
            return await asyncio.to_thread(generate_latest, _Collected(families)), CONTENT_TYPE_LATEST

    def _model_label(self, model: str) -> str:
        return model if self._is_known(model) else OTHER

    def _bind(self, key: tuple[str, str, int, str, str]) -> _Children:
        route, given, status, policy, reason = key
        model = self._model_label(given)
        if len(self._children) >= MAX_LABEL_VALUES:
            model = OTHER
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


class _Collected(CollectorRegistry):
    """Families that were read already, to be written."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _GapCollector(Collector):
    def __init__(self, gaps: dict[str, Gaps]) -> None:
        self._gaps = gaps

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            "warmroute_inter_chunk_seconds", "Time between two reads of a stream.", labels=("model",)
        )
        for model, gaps in self._gaps.items():
            buckets, total = [], 0
            for bound, here in zip((*map(str, GAP_BUCKETS), "+Inf"), gaps.counts, strict=True):
                total += here
                buckets.append((bound, float(total)))
            family.add_metric((model,), buckets, gaps.total_s)
        return (family,)


_REUSE: tuple[tuple[str, str, Callable[[CacheUse], float]], ...] = (
    ("requests", "Attempts that were sent to the worker.", attrgetter("requests")),
    (
        "prompt_tokens",
        "Prompt tokens of the worker's requests, where it told what was cached.",
        attrgetter("prompt_tokens"),
    ),
    ("cached_tokens", "Of those, tokens that were cached.", attrgetter("cached_tokens")),
    (
        "saved_prefill_seconds",
        "Seconds of prefill that they spared, at the worker's learnt rate.",
        attrgetter("saved_s"),
    ),
)


class FleetCollector(Collector):
    """The fleet, the index and the bounded things, read when Prometheus asks. A family at a time: with a thousand workers each
    is milliseconds, and others are served in between."""

    def __init__(
        self,
        fleet: Fleet,
        index: PrefixIndex,
        misses: CacheMisses,
        budget: RetryBudget,
        sizes: Callable[[], Iterable[tuple[str, str, float]]],
        rejected_replies: Mapping[str, int],
    ) -> None:
        """``rejected_replies``: replies of workers, by what is wrong with them."""
        self._rejected_replies = rejected_replies
        self._fleet = fleet
        self._index = index
        self._misses = misses
        self._budget = budget
        self._sizes = sizes
        self._figures: tuple[tuple[str, str, Callable[[int], float]], ...] = (
            ("worker_in_flight", "Requests of this router on the worker.", lambda at: fleet.figures.in_flight[at]),
            (
                "worker_queued_prefill_tokens",
                "Tokens sent there whose first token is not back.",
                lambda at: max(fleet.figures.queued_prefill_tokens[at], 0.0),
            ),
            (
                "worker_prefill_rate",
                "Learnt prefill rate, tokens per second.",
                lambda at: 1.0 / fleet.figures.seconds_per_token[at],
            ),
            ("prefix_index_blocks", "Blocks of the index that the worker is believed to hold.", index.blocks),
            ("prefix_index_max_blocks", "Blocks that the index will remember of the worker.", index.limit),
        )

    def collect(self) -> Iterator[Metric]:
        yield self._states()
        for name, text, read in self._figures:
            gauge = _gauge(name, text, "worker")
            for member in self._fleet.members():
                gauge.add_metric((str(member.name),), read(member.position))
            yield gauge
        for name, text, count in _REUSE:
            family = _worker_counter(name, text)
            for member in self._fleet.members():
                family.add_metric((str(member.name),), count(member.reuse))
            yield family
        yield self._ejections()
        yield counter(
            "uncached_tokens",
            "Prompt tokens that were computed, by why: new, cached elsewhere, or gone from the chosen worker's cache.",
            self._misses.tokens,
            "reason",
        )
        yield counter(
            "rejected_replies",
            "Replies of workers that the router rejected, by what is wrong with them: the head, the framing, the events or the "
            "end of a stream, the size, or the answer to a probe.",
            self._rejected_replies,
            "kind",
        )
        retrying = _gauge("retries_in_flight", "Retries under way that the budget governs.")
        retrying.add_metric((), self._budget.retrying)
        left = _gauge("retry_budget", "Retries that may be made now.")
        left.add_metric((), self._budget.left)
        most = _gauge("retry_budget_max", "How many may be saved up.")
        most.add_metric((), self._budget.most)
        yield from (retrying, left, most)
        for name, description, value in self._sizes():
            size = _gauge(name, description)
            size.add_metric((), value)
            yield size

    def _states(self) -> Metric:
        state = _gauge("worker_state", "1 for the state that the worker is in.", "worker", "state")
        for member in self._fleet.members():
            for each in WorkerState:
                state.add_metric((str(member.name), each.value), float(member.state is each))
        return state

    def _ejections(self) -> Metric:
        ejections = CounterMetricFamily(
            "warmroute_worker_ejections", "Times that the worker was taken out.", labels=("worker", "cause")
        )
        for member in self._fleet.members():
            for cause in Cause:
                ejections.add_metric((str(member.name), cause.value), member.health.ejections[cause])
        return ejections


class SourceFigures(Protocol):
    """By kind of source: looks that failed, workers that were found, watches that broke."""

    @property
    def failures(self) -> Mapping[str, int]: ...

    @property
    def found(self) -> Mapping[str, int]: ...

    @property
    def restarts(self) -> Mapping[str, int]: ...


class MemoryCollector(Collector):
    """What is held of clients' requests and answers."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget

    def collect(self) -> Iterator[Metric]:
        held = _gauge("held_bytes", "Bytes held of clients' requests and answers.", "kind")
        for kind, count in self._budget.by_kind.items():
            held.add_metric((kind,), count)
        most = _gauge("max_held_bytes", "Most bytes that may be held of them together.")
        most.add_metric((), self._budget.max_bytes)
        refusals = counter("held_refusals", "Times that nothing more could be held.", self._budget.refusals, "kind")
        yield from (held, most, refusals)


class BackgroundCollector(Collector):
    """What goes on beside the requests: tasks that failed, by name, and sources of workers, by kind."""

    def __init__(self, tasks: Mapping[str, int], sources: SourceFigures) -> None:
        self._tasks = tasks
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        yield counter(
            "background_failures", "Tasks beside the requests that failed, and began again.", self._tasks, "task"
        )
        yield counter(
            "workers_reload_failures",
            "Looks at a source of workers that failed: its last list stays.",
            self._sources.failures,
            "source",
        )
        yield counter(
            "workers_watch_breaks", "Watches of a source of workers that broke.", self._sources.restarts, "source"
        )
        found = _gauge("discovered_workers", "Workers that a source named last.", "source")
        for source, workers in self._sources.found.items():
            found.add_metric((source,), workers)
        yield found


class AuthFigures(Protocol):
    """What stands at the door. ``failures``: looks at the key file that came to nothing."""

    @property
    def failures(self) -> int: ...

    @property
    def loaded_keys(self) -> int: ...

    @property
    def refusals(self) -> Mapping[AuthRefusal, int]: ...


class AuthCollector(Collector):
    """Keys and who was refused; all zero where no keys are asked for."""

    def __init__(self, figures: AuthFigures | None) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        refusals = CounterMetricFamily(
            "warmroute_auth_refusals", "Requests without a valid API key, by what was wrong.", labels=("reason",)
        )
        for refusal in AuthRefusal:
            refusals.add_metric((refusal.value,), figures.refusals[refusal] if figures else 0)
        failures = CounterMetricFamily("warmroute_keys_reload_failures", "Looks at the key file that failed.")
        failures.add_metric((), figures.failures if figures else 0)
        loaded = _gauge("keys_loaded", "API keys that are listed.")
        loaded.add_metric((), figures.loaded_keys if figures else 0)
        yield from (refusals, failures, loaded)


class CertificateCollector(Collector):
    """Whether the data port's certificate could be renewed."""

    def __init__(self, failures: Callable[[], int]) -> None:
        self._failures = failures

    def collect(self) -> Iterator[Metric]:
        failures = CounterMetricFamily(
            "warmroute_certificate_reload_failures",
            "Looks at the data port's certificate that failed: the old one is shown.",
        )
        failures.add_metric((), self._failures())
        yield failures


def _worker_counter(name: str, description: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"warmroute_worker_{name}", description, labels=("worker",))


def _gauge(name: str, description: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"warmroute_{name}", description, labels=labels)
