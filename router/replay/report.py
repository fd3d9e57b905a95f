"""Outcomes and counters → figures. Pure. Times are seconds of the trace unless a name says wall."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rich.table import Table

from router.replay.client import Outcome
from router.replay.fleet import Counters

MAX_FINE_LATENESS_S = 0.05


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, nearest-rank percentiles and maximum of measured seconds. All are 0 if nothing was measured."""

    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        ordered = sorted(values)
        if not ordered:
            return cls()

        def rank(percent: int) -> float:
            return ordered[-(-percent * len(ordered) // 100) - 1]

        return cls(sum(ordered) / len(ordered), rank(50), rank(90), rank(99), ordered[-1])

    def times(self, factor: float) -> "Spread":
        return Spread(*(value * factor for value in (self.mean, self.p50, self.p90, self.p99, self.max)))


@dataclass(frozen=True, slots=True)
class Sending:
    """One request: the time when it was due, by the outcome's clock, and its outcome."""

    due_at: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The results of a replay.

    ttft: from the time when a request was due to its first event with a choice, for answered requests. ttft_after_send:
    from the time when it was sent. errors: counts by kind, highest first. hit_ratio: tokens found in the workers' caches
    over tokens looked up; None without the workers' counters. requests_by_worker: by the router's header, else by the
    workers' counters. imbalance: requests of the busiest worker over the mean. request_rate: answered requests per
    second. lateness_wall_s: the longest delay of a request by this process.
    """

    settings: dict[str, Any]
    requests: int
    answered: int
    errors: dict[str, int]
    hit_tokens: float
    queried_tokens: float
    hit_ratio: float | None
    ttft: Spread
    ttft_after_send: Spread
    duration: Spread
    requests_by_worker: dict[str, int]
    imbalance: float
    trace_s: float
    wall_s: float
    request_rate: float
    lateness_wall_s: float
    cpu_wall_s: float

    @property
    def warnings(self) -> list[str]:
        found = []
        if self.lateness_wall_s > MAX_FINE_LATENESS_S:
            late_ms = self.lateness_wall_s * 1000
            found.append(f"a request was sent {late_ms:.0f} ms (wall) late: this machine is too busy for valid figures")
        if self.hit_ratio is None:
            found.append("the hit ratio is unknown without the workers' counters")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON types, warnings included."""
        return {**asdict(self), "warnings": self.warnings}

    def as_table(self) -> Table:
        table = Table(title="replay (seconds are the trace's)", show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_row("requests", f"{self.requests:,}")
        table.add_row("answered", f"{self.answered:,}")
        for kind, count in self.errors.items():
            table.add_row(f"error: {kind}", f"{count:,}", style="red")
        table.add_row("hit ratio (workers)", "unknown" if self.hit_ratio is None else f"{self.hit_ratio:.3f}")
        for name, value in asdict(self.ttft).items():
            table.add_row(f"TTFT {name}", f"{value:.3f} s")
        table.add_row("TTFT mean after send", f"{self.ttft_after_send.mean:.3f} s")
        table.add_row("busiest worker / mean", f"{self.imbalance:.2f}")
        table.add_row("duration", f"{self.trace_s:,.1f} s ({self.wall_s:,.1f} s wall)")
        table.add_row("throughput", f"{self.request_rate:.2f} requests/s")
        table.add_row("sent late at most", f"{self.lateness_wall_s * 1000:.1f} ms wall")
        for warning in self.warnings:
            table.add_row("warning", warning, style="yellow")
        return table


def make_report(
    sendings: Sequence[Sending],
    *,
    settings: dict[str, Any],
    time_scale: float,
    counters: Mapping[str, Counters],
    wall_s: float,
    cpu_wall_s: float,
) -> ReplayReport:
    """counters: each worker's increase during the replay. time_scale: trace seconds per wall second."""
    outcomes = [sending.outcome for sending in sendings]
    answered = [sending for sending in sendings if sending.outcome.error is None]
    hits = sum(worker.hits for worker in counters.values())
    queries = sum(worker.queries for worker in counters.values())
    by_worker = _requests_by_worker(outcomes, counters)
    workers = max(len(counters), len(by_worker))
    ttft = Spread.of(sending.outcome.first_event_at - sending.due_at for sending in answered)
    after_send = Spread.of(sending.outcome.first_event_at - sending.outcome.sent_at for sending in answered)
    duration = Spread.of(sending.outcome.ended_at - sending.due_at for sending in answered)
    trace_s = wall_s * time_scale
    return ReplayReport(
        settings=settings,
        requests=len(sendings),
        answered=len(answered),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error).most_common()),
        hit_tokens=hits,
        queried_tokens=queries,
        hit_ratio=hits / queries if queries else None,
        ttft=ttft.times(time_scale),
        ttft_after_send=after_send.times(time_scale),
        duration=duration.times(time_scale),
        requests_by_worker=by_worker,
        imbalance=max(by_worker.values()) * workers / sum(by_worker.values()) if any(by_worker.values()) else 0.0,
        trace_s=trace_s,
        wall_s=wall_s,
        request_rate=len(answered) / trace_s if trace_s else 0.0,
        lateness_wall_s=max((max(0.0, sending.outcome.sent_at - sending.due_at) for sending in sendings), default=0.0),
        cpu_wall_s=cpu_wall_s,
    )


def _requests_by_worker(outcomes: Iterable[Outcome], counters: Mapping[str, Counters]) -> dict[str, int]:
    named = Counter(outcome.worker for outcome in outcomes if outcome.worker)
    if named:
        return dict(sorted(named.items()))
    return {url: round(worker.requests) for url, worker in counters.items()}
