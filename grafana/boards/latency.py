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
    description="Time to the first token, between tokens, in the router and in its queue.",
    by_model=True,
    rows=(
        (
            "At a glance",
            (
                Panel(
                    title="First token, p95",
                    description="From the request's head to the first event of its stream.",
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
                    title="Between tokens, p99",
                    description="Time between two reads of a stream. An engine that is busy puts several tokens into one read.",
                    unit="s",
                    kind="stat",
                    width=6,
                    queries=(Query(quantile(0.99, "inter_chunk_seconds", MODEL), "p99"),),
                ),
                Panel(
                    title="Router's own, p99",
                    description="Until workers were ranked, the arrival of the body included: a client that uploads slowly "
                    "shows here. Above a few milliseconds with short bodies the router is short of CPU: add one.",
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
                    title="Time to the first token",
                    description="High while the hit ratio is low: prompts are computed. High with a good ratio: workers are "
                    "full, see the queue and Fleet.",
                    unit="s",
                    limits=(Limit(2.5, "red"),),
                    queries=quantiles("time_to_first_token_seconds", MODEL),
                ),
                Panel(
                    title="By model, p95",
                    description="Of streams.",
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
                    description="Rises when workers decode for many at once.",
                    unit="s",
                    queries=quantiles("inter_chunk_seconds", MODEL),
                ),
                Panel(
                    title="Request duration",
                    description="To the last byte. Says more of how long answers are than of the fleet.",
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
                    description="See above.",
                    unit="s",
                    queries=quantiles("router_overhead_seconds"),
                ),
                Panel(
                    title="A session's turn on its way",
                    description="From a turn's request until it is dispatched: claim, history and prompt, and waiting for "
                    "other turns of its session.",
                    unit="s",
                    queries=quantiles("turn_overhead_seconds"),
                ),
                Panel(
                    title="Waiting for room",
                    description="Of requests that waited. Add workers, or let fewer in, before it is a share of the objective.",
                    unit="s",
                    queries=quantiles("queue_wait_seconds"),
                ),
                Panel(
                    title="Requests that wait",
                    description="For room, for any worker, for the one that is warm, for busy ones, or past their deadline for "
                    "silent ones that are at work; and how many may wait for room.",
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
