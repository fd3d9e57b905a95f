"""Who is there, who is busy, who is ill, and what clients see of it."""

from __future__ import annotations

from grafana.panels import Board, Limit, Panel, Query
from grafana.queries import now, quantile, rate, series, share, total, worst

_UP = now("worker_state", 'state="up"', by="instance") + " or 0 * " + now("build_info", by="instance")
"""A router that has found no worker has no series of one."""
_EJECTED = now("worker_state", 'state="ejected"', by="instance")
_BY_WORKER = rate("worker_requests_total", by="worker")
_SERVER_ERRORS = rate("requests_total", 'status=~"5.."')
_CUT_OFF = rate("resumptions_total", 'outcome=~"unsafe|failed"')

BOUNDS = (
    ("heads", "head_bytes", "max_head_bytes"),
    ("processes that read bodies", "parsing_processes", "max_parsing_processes"),
    ("bodies that wait for a worker", "queue_bytes", "queue_max_bytes"),
    ("kept of streams", "resumption_kept_bytes", "resumption_max_kept_bytes"),
    ("connections of a key", "peak_key_connections", "max_key_connections"),
    ("admin connections", "admin_connections", "max_admin_connections"),
    ("viewers", "status_viewers", "max_status_viewers"),
    ("wrong tokens", "admin_wrong_tokens", "max_admin_wrong_tokens"),
    ("known models", "known_models", "max_known_models"),
    ("claims to be given back", "waiting_releases", "max_waiting_releases"),
)

BOARD = Board(
    name="fleet",
    title="Warmroute / Fleet",
    description="Health and load of the workers, and how the router dealt with failures.",
    rows=(
        (
            "At a glance",
            (
                Panel(
                    title="Workers up",
                    description="As the router that sees the fewest counts them.",
                    unit="short",
                    kind="stat",
                    width=6,
                    base="red",
                    limits=(Limit(1, "green"),),
                    queries=(Query(f"min({_UP})", "up"),),
                ),
                Panel(
                    title="Workers ejected",
                    description="Workers taken out because they failed. The router tries them again by itself. If a "
                    "worker stays out, its own log has the reason.",
                    unit="short",
                    kind="stat",
                    width=6,
                    base="green",
                    limits=(Limit(1, "yellow"),),
                    queries=(Query(f"max({_EJECTED})", "ejected"),),
                ),
                Panel(
                    title="Requests per second",
                    description="All requests that ended, refused ones included.",
                    unit="reqps",
                    kind="stat",
                    width=6,
                    queries=(Query(rate("requests_total"), "requests"),),
                ),
                Panel(
                    title="Failed requests",
                    description="Share of requests that ended with a 5xx or as a broken stream. The alerts guard an "
                    "objective of 0.1 %.",
                    unit="percentunit",
                    kind="stat",
                    width=6,
                    base="green",
                    limits=(Limit(0.001, "yellow"), Limit(0.01, "red")),
                    queries=(Query(share(f"({_SERVER_ERRORS} + {_CUT_OFF})", rate("requests_total")), "failed"),),
                ),
            ),
        ),
        (
            "Workers",
            (
                Panel(
                    title="Workers by state",
                    description="starting: has not answered a probe yet. ejected: failing. asleep: its engine sleeps "
                    "and takes no requests. A worker that routers see differently counts in each state.",
                    unit="short",
                    kind="stack",
                    queries=(Query(total(worst("worker_state", by="state, worker"), "state"), "{{state}}"),),
                ),
                Panel(
                    title="Workers found",
                    description="By source, as the router that found the fewest counts them. If some are missing, "
                    "check that the source names them and can be read.",
                    unit="short",
                    queries=(Query(f"min by (source) ({series('discovered_workers')})", "{{source}}"),),
                ),
                Panel(
                    title="Requests that wait in the routers",
                    description="Requests that have no worker yet; see the board Latency.",
                    unit="short",
                    queries=(Query(now("queue_depth", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Ejections",
                    description="By cause: died, errors, timeout, probe. If one worker has many, drain it and look at "
                    "it.",
                    unit="cps",
                    queries=(Query(rate("worker_ejections_total", by="worker, cause"), "{{worker}} {{cause}}"),),
                ),
                Panel(
                    title="Requests in progress",
                    description="Requests of these routers on each worker.",
                    unit="short",
                    queries=(Query(now("worker_in_flight", by="worker"), "{{worker}}"),),
                ),
                Panel(
                    title="Share of requests",
                    description="Equal shares are not the aim: warm workers get more. A worker far above the others "
                    "whose first tokens are slow is too hot; see policy.ring_bound and policy.leave_weight in "
                    "docs/policies.md.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(f"{_BY_WORKER} / ignoring(worker) group_left() (sum({_BY_WORKER}) > 0)", "{{worker}}"),
                    ),
                ),
                Panel(
                    title="Queued prefill tokens",
                    description="Prompt tokens of requests that have no first token yet.",
                    unit="short",
                    queries=(Query(now("worker_queued_prefill_tokens", by="worker"), "{{worker}}"),),
                ),
                Panel(
                    title="Prefill rate",
                    description="Learnt rate in tokens per second. A worker slower than its equals shares its GPU or "
                    "is ill.",
                    unit="cps",
                    queries=(Query(worst("worker_prefill_rate", by="worker"), "{{worker}}"),),
                ),
            ),
        ),
        (
            "Failures, as they were dealt with",
            (
                Panel(
                    title="Retries",
                    description="Retries before the first byte, by cause. Clients see none of them.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("retries_total", by="cause"), "{{cause}}"),),
                ),
                Panel(
                    title="Retry budget",
                    description="Retries that each router may make now, and retries in progress. When it is empty, "
                    "failures reach clients, so that a failing fleet gets no additional load.",
                    unit="short",
                    queries=(
                        Query(now("retry_budget", by="instance"), "left {{instance}}"),
                        Query(now("retries_in_flight", by="instance"), "under way {{instance}}"),
                        Query(worst("retry_budget_max"), "most"),
                    ),
                ),
                Panel(
                    title="Rejected replies",
                    description="Replies of workers that the router rejected, by what was wrong. An engine that dies "
                    "ends its streams this way; any other kind means a broken worker, a proxy before it, or an "
                    "attack.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("rejected_replies_total", by="kind"), "{{kind}}"),),
                ),
                Panel(
                    title="Broken streams",
                    description="exact, text, finished: the stream continued on another worker. unsafe, failed: the "
                    "client got half an answer.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("resumptions_total", by="outcome"), "{{outcome}}"),),
                ),
                Panel(
                    title="Pause of a resumed stream",
                    description="Time from the break to the next event.",
                    unit="s",
                    queries=(
                        Query(quantile(0.5, "resumption_gap_seconds"), "p50"),
                        Query(quantile(0.99, "resumption_gap_seconds"), "p99"),
                    ),
                ),
                Panel(
                    title="Requests given up",
                    description="Several workers died under one request. Look in the log for the request that kills "
                    "them, by its id.",
                    unit="cps",
                    queries=(Query(rate("given_up_requests_total"), "given up"),),
                ),
                Panel(
                    title="Refused before a worker was chosen",
                    description="By reason: a tenant's limits, a full queue, no worker.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("admission_refusals_total", by="reason"), "{{reason}}"),),
                ),
            ),
        ),
        (
            "Routers",
            (
                Panel(
                    title="Requests by status",
                    description="499: the client left first.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("requests_total", by="status"), "{{status}}"),),
                ),
                Panel(
                    title="Live requests",
                    description="Requests in progress in each router. The autoscaler uses this figure.",
                    unit="short",
                    queries=(Query(now("live_requests", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Client connections",
                    description="Open connections as a share of the connections allowed.",
                    unit="percentunit",
                    maximum=1,
                    limits=(Limit(0.8, "orange"),),
                    queries=(
                        Query(
                            f"{now('client_connections', by='instance')} / {now('max_client_connections', by='instance')}",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    title="Memory held for clients",
                    description="Bytes held for requests and answers, as a share of limits.max_held_bytes.",
                    unit="percentunit",
                    maximum=1,
                    limits=(Limit(0.8, "orange"),),
                    queries=(
                        Query(
                            f"{now('held_bytes', by='instance')} / {now('max_held_bytes', by='instance')}",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    title="Other bounds",
                    description="How full each other bound of a router is. At 1 the router refuses, or forgets the "
                    "oldest.",
                    unit="percentunit",
                    maximum=1,
                    width=24,
                    limits=(Limit(0.8, "orange"),),
                    queries=tuple(
                        Query(f"{now(figure, by='instance')} / {now(most, by='instance')}", f"{what} {{{{instance}}}}")
                        for what, figure, most in BOUNDS
                    ),
                ),
                Panel(
                    title="Refused because memory was used up",
                    description="Requests refused, and clients cut off that do not read, because "
                    "limits.max_held_bytes was reached.",
                    unit="cps",
                    queries=(Query(rate("held_refusals_total", by="kind"), "{{kind}}"),),
                ),
                Panel(
                    title="Costly bodies that wait",
                    description="Bodies that wait for a parsing process.",
                    unit="short",
                    queries=(Query(now("parsing_waiting", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Client connections cut off",
                    description="By cause: clients that send too slowly or do not read.",
                    unit="cps",
                    queries=(Query(rate("cut_connections_total", by="cause"), "{{cause}}"),),
                ),
                Panel(
                    title="Traces",
                    description="Requests whose spans were sent to the collector, or dropped because it takes them "
                    "too slowly.",
                    unit="cps",
                    queries=(
                        Query(rate("sent_traces_total"), "sent"),
                        Query(rate("dropped_traces_total"), "dropped"),
                    ),
                ),
                Panel(
                    title="Traces that wait",
                    description="Requests whose spans wait for the collector, and how many may wait.",
                    unit="short",
                    queries=(
                        Query(now("waiting_traces"), "wait"),
                        Query(now("max_waiting_traces"), "may wait"),
                    ),
                ),
                Panel(
                    title="Background failures",
                    description="Background tasks that were started again, and sources of workers that could not be "
                    "read. Should be zero.",
                    unit="cps",
                    limits=(Limit(0.01, "orange"),),
                    queries=(
                        Query(rate("background_failures_total", by="task"), "{{task}}"),
                        Query(rate("workers_reload_failures_total", by="source"), "workers from {{source}}"),
                        Query(rate("keys_reload_failures_total"), "keys"),
                        Query(rate("certificate_reload_failures_total"), "certificate"),
                        Query(rate("workers_watch_breaks_total", by="source"), "watch of {{source}}"),
                    ),
                ),
            ),
        ),
    ),
)
