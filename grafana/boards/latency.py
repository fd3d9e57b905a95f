"""How soon clients see something, and where their time goes."""

from __future__ import annotations

from grafana.panels import Board, Limit, Panel, Query
from grafana.queries import now, quantile, rate, share

MODEL = 'model=~"$model"'
SHARES = (0.5, 0.95, 0.99)
GOOD_S = "2.5"
"""The objective of docs/dashboards.md, a bucket's bound: seconds to the first token."""


def quantiles(metric: str, *matchers: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(share, metric, *matchers), f"p{share * 100:g}") for share in SHARES)


BOARD = Board(
    name="latency",
    title="Warmroute / Latency",
    description="Time to the first token (TTFT), between tokens, in the router and in its queue.",
    by_model=True,
    rows=(
        (
            "At a glance",
            (
                Panel(
                    title="TTFT, p95",
                    description="Time from a request's head to the first event of its stream.",
                    unit="s",
                    kind="stat",
                    width=6,
                    base="green",
                    limits=(Limit(1, "yellow"), Limit(2.5, "red")),
                    queries=(Query(quantile(0.95, "time_to_first_token_seconds", MODEL), "p95"),),
                ),
                Panel(
                    title=f"First token within {GOOD_S} s",
                    description="Share of streams. The objective that the alerts guard is 99 %.",
                    unit="percentunit",
                    kind="stat",
                    width=6,
                    maximum=1,
                    base="red",
                    limits=(Limit(0.95, "yellow"), Limit(0.99, "green")),
                    queries=(
                        Query(
                            share(
                                rate("time_to_first_token_seconds_bucket", MODEL, f'le="{GOOD_S}"'),
                                rate("time_to_first_token_seconds_count", MODEL),
                            ),
                            "good",
                        ),
                    ),
                ),
                Panel(
                    title="Between reads, p99",
                    description="Time between two reads of a stream. A busy engine puts several tokens into one read.",
                    unit="s",
                    kind="stat",
                    width=6,
                    queries=(Query(quantile(0.99, "inter_chunk_seconds", MODEL), "p99"),),
                ),
                Panel(
                    title="Router's own time, p99",
                    description="Time until workers were ranked. The arrival of the body is included, so a client "
                    "that uploads slowly shows here. If it is above a few milliseconds with short bodies, the router "
                    "is short of CPU: add a router.",
                    unit="s",
                    kind="stat",
                    width=6,
                    base="green",
                    limits=(Limit(0.01, "yellow"), Limit(0.05, "red")),
                    queries=(Query(quantile(0.99, "router_overhead_seconds"), "p99"),),
                ),
            ),
        ),
        (
            "First token",
            (
                Panel(
                    title="Time to first token (TTFT)",
                    description="High with a low hit ratio: prompts are computed. High with a good hit ratio: workers "
                    "are full; see the queue and the board Fleet.",
                    unit="s",
                    limits=(Limit(2.5, "red"),),
                    queries=quantiles("time_to_first_token_seconds", MODEL),
                ),
                Panel(
                    title="TTFT by model, p95",
                    description="Streams only.",
                    unit="s",
                    queries=(Query(quantile(0.95, "time_to_first_token_seconds", MODEL, by="model"), "{{model}}"),),
                ),
            ),
        ),
        (
            "Whole answers",
            (
                Panel(
                    title="Between two reads of a stream",
                    description="Rises when workers decode for many requests at once.",
                    unit="s",
                    queries=quantiles("inter_chunk_seconds", MODEL),
                ),
                Panel(
                    title="Request duration",
                    description="Time to the last byte. It depends more on the length of answers than on the fleet.",
                    unit="s",
                    queries=quantiles("request_duration_seconds", MODEL),
                ),
            ),
        ),
        (
            "In the router",
            (
                Panel(
                    title="Router's own time",
                    description="Time until workers were ranked, the arrival of the body included.",
                    unit="s",
                    queries=quantiles("router_overhead_seconds"),
                ),
                Panel(
                    title="Overhead of a session's turn",
                    description="Time from a turn's request until it is dispatched: claim, history and prompt, and "
                    "waiting for other turns of its session.",
                    unit="s",
                    queries=quantiles("turn_overhead_seconds"),
                ),
                Panel(
                    title="Time in the queue",
                    description="Requests that waited. If it is a share of the objective, add workers or admit fewer "
                    "requests.",
                    unit="s",
                    queries=quantiles("queue_wait_seconds"),
                ),
                Panel(
                    title="Requests that wait",
                    description="For room, for any worker, for the warm worker, for busy workers, or past their "
                    "deadline for a silent worker that is at work; and how many may wait for room.",
                    unit="short",
                    queries=(
                        Query(now("queue_depth"), "in the queue"),
                        Query(now("warm_waits"), "for the warm worker"),
                        Query(now("busy_waits"), "for busy workers"),
                        Query(now("overdue_requests"), "for silent workers at work"),
                        Query(now("queue_max"), "may wait"),
                    ),
                ),
            ),
        ),
    ),
)
