"""The fleet, its workers, their streams, the connections to them, and the sources that name them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from router.core.fleet.affinity import LastWorkers
from router.core.fleet.catalog import MAX_KNOWN_MODELS
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import Cause, WorkerState
from router.core.fleet.member import Member
from router.core.index.prefix_index import PrefixIndex
from router.runtime.metrics import MAX_LABEL_VALUES, OTHER, Row, counter, gauge
from router.upstream.fleet_sync import FleetSync
from router.upstream.pool import Pool

GAP_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0)


class _Gaps:
    """Times between the reads of a stream, counted by bucket: a third of the cost of the library's histogram."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_BUCKETS) + 1)
        self.total_s = 0.0

    def __repr__(self) -> str:
        return f"_Gaps({sum(self.counts)} in {self.total_s:.3f} s)"

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(GAP_BUCKETS, seconds)] += 1
        self.total_s += seconds


class StreamGaps(Collector):
    """``is_known(model)`` says whether a model's name may become a label."""

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known
        self._gaps: dict[str, _Gaps] = {}

    def of(self, model: str) -> Callable[[float], None]:
        """Observes one gap, in seconds."""
        gaps = self._gaps.get(model)
        if gaps is None:
            label = model if self._is_known(model) and len(self._gaps) < MAX_LABEL_VALUES else OTHER
            gaps = self._gaps.setdefault(label, _Gaps())
        return gaps.observe

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "warmroute_inter_chunk_seconds", "Time between two reads of a worker's stream.", labels=("model",)
        )
        for model, gaps in self._gaps.items():
            buckets, total = [], 0
            for bound, here in zip((*map(str, GAP_BUCKETS), "+Inf"), gaps.counts, strict=True):
                total += here
                buckets.append((bound, float(total)))
            family.add_metric((model,), buckets, gaps.total_s)
        yield family


def fleet_rows(fleet: Fleet, index: PrefixIndex) -> Iterable[Row]:
    def each(read: Callable[[Member], float]) -> Callable[[], Mapping[str, float]]:
        return lambda: {member.name: read(member) for member in fleet.members()}

    def states() -> Mapping[tuple[str, str], float]:
        members = tuple(fleet.members())
        return {(member.name, state.value): member.state is state for member in members for state in WorkerState}

    return (
        gauge("worker_state", "1 for the state that the worker is in, 0 for the others.", states, "worker", "state"),
        gauge(
            "worker_in_flight",
            "Requests that this router has on the worker now.",
            each(lambda member: fleet.figures.in_flight[member.position]),
            "worker",
        ),
        gauge(
            "worker_queued_prefill_tokens",
            "Uncached prompt tokens of requests that this router sent to the worker and that have no first token yet.",
            each(lambda member: max(fleet.figures.queued_prefill_tokens[member.position], 0.0)),
            "worker",
        ),
        gauge(
            "worker_prefill_rate",
            "Prefill rate that the router learnt for the worker, in tokens per second.",
            each(lambda member: 1.0 / fleet.figures.seconds_per_token[member.position]),
            "worker",
        ),
        gauge(
            "prefix_index_blocks",
            "Blocks of the prefix index that the worker is believed to hold.",
            each(lambda member: index.blocks(member.position)),
            "worker",
        ),
        gauge(
            "prefix_index_max_blocks",
            "Most blocks that the prefix index remembers for the worker.",
            each(lambda member: index.limit(member.position)),
            "worker",
        ),
        *_cache_rows(each),
        counter("worker_ejections", "Ejections of the worker, by cause.", lambda: _ejections(fleet), "worker", "cause"),
        gauge(
            "known_models",
            "Model names that the router remembers: served now, or served before.",
            lambda: len(fleet.catalog),
        ),
        gauge(
            "max_known_models",
            "Most model names that the router remembers once no worker serves them.",
            lambda: MAX_KNOWN_MODELS,
        ),
    )


def _cache_rows(each: Callable[[Callable[[Member], float]], Callable[[], Mapping[str, float]]]) -> Iterable[Row]:
    """Hits and misses of each worker's cache since the worker joined."""
    return (
        counter(
            "worker_requests",
            "Attempts that were sent to the worker.",
            each(lambda member: member.reuse.requests),
            "worker",
        ),
        counter(
            "worker_prompt_tokens",
            "Prompt tokens of the worker's requests, where it reported how many were cached.",
            each(lambda member: member.reuse.prompt_tokens),
            "worker",
        ),
        counter(
            "worker_cached_tokens",
            "Prompt tokens that the worker found in its cache.",
            each(lambda member: member.reuse.cached_tokens),
            "worker",
        ),
        counter(
            "worker_saved_prefill_seconds",
            "Seconds of prefill that the worker's cache saved, at the rate that the router learnt for it.",
            each(lambda member: member.reuse.saved_s),
            "worker",
        ),
    )


def _ejections(fleet: Fleet) -> Mapping[tuple[str, str], int]:
    members = tuple(fleet.members())
    return {(member.name, cause.value): member.health.ejections[cause] for member in members for cause in Cause}


def affinity_rows(last_workers: LastWorkers) -> Iterable[Row]:
    return (
        gauge("remembered_sessions", "Sessions whose last worker is remembered.", lambda: len(last_workers)),
        gauge(
            "max_remembered_sessions",
            "Most sessions whose last worker is remembered (index.max_sessions).",
            lambda: last_workers.max_sessions,
        ),
    )


def pool_rows(pool: Pool) -> Iterable[Row]:
    return (
        gauge("open_worker_connections", "Open connections to workers.", lambda: pool.open_connections),
        gauge(
            "overdue_requests",
            "Requests past their deadline that still wait, because the worker's load figures show that it is at work.",
            lambda: pool.overdue,
        ),
        gauge(
            "worker_reads_waiting",
            "Large reads from workers that wait for their share of the event loop.",
            lambda: len(pool.scheduler),
        ),
        counter(
            "rejected_replies",
            "Replies of workers that the router rejected, by what is wrong with them: the head, the framing, the events or the "
            "end of a stream, the size, or the answer to a probe.",
            lambda: pool.rejected_replies,
            "kind",
        ),
    )


def source_rows(fleet_sync: FleetSync) -> Iterable[Row]:
    """By kind of source."""
    return (
        counter(
            "workers_reload_failures",
            "Failed reads of a source of workers. The last list that was read stays in use.",
            lambda: fleet_sync.failures,
            "source",
        ),
        counter(
            "workers_watch_breaks",
            "Watches of a source of workers that broke and were started again.",
            lambda: fleet_sync.restarts,
            "source",
        ),
        gauge("discovered_workers", "Workers in the last list of a source.", lambda: fleet_sync.found, "source"),
    )
