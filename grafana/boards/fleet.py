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
    ("claims to be given back", "give_backs", "max_give_backs"),
)

BOARD = Board(
    name="fleet",
    title="Warmroute / Fleet",
    description="Workers' health and load, and how failures were dealt with.",
    rows=(
        (
            "At a glance",
            (
                Panel(
                    title="Workers up",
                    description="As the router with the fewest sees it.",
                    unit="short",
                    kind="stat",
                    width=6,
                    base="red",
                    limits=(Limit(1, "green"),),
                    queries=(Query(f"min({_UP})", "up"),),
                ),
                Panel(
                    title="Workers ejected",
                    description="Taken out since they failed; they are tried again by themselves. A worker that stays out has "
                    "a reason in its own log.",
                    unit="short",
                    kind="stat",
                    width=6,
                    base="green",
                    limits=(Limit(1, "yellow"),),
                    queries=(Query(f"max({_EJECTED})", "ejected"),),
                ),
                Panel(
                    title="Requests a second",
                    description="All that ended, refused ones among them.",
                    unit="reqps",
                    kind="stat",
                    width=6,
                    queries=(Query(rate("requests_total"), "requests"),),
                ),
                Panel(
                    title="Failed",
                    description="Share of requests that ended with a 5xx, or as half a stream. The objective that the alerts "
                    "guard is 0.1 %.",
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
                    description="starting: not yet answered a probe. ejected: failing. asleep: its engine sleeps, and takes no "
                    "requests. One that routers see differently counts in each state.",
                    unit="short",
                    kind="stack",
                    queries=(Query(total(worst("worker_state", by="state, worker"), "state"), "{{state}}"),),
                ),
                Panel(
                    title="Workers found",
                    description="By each source, as the router with the fewest found. Fewer than there are: look whether the "
                    "source names them, and can be read.",
                    unit="short",
                    queries=(Query(f"min by (source) ({series('discovered_workers')})", "{{source}}"),),
                ),
                Panel(
                    title="Requests not asked of a worker yet",
                    description="They wait in the routers; see Latency.",
                    unit="short",
                    queries=(Query(now("queue_depth", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Ejections",
                    description="By cause: died, errors, timeout, probe. Many of one worker: drain and look at it.",
                    unit="cps",
                    queries=(Query(rate("worker_ejections_total", by="worker, cause"), "{{worker}} {{cause}}"),),
                ),
                Panel(
                    title="Requests under way",
                    description="Of these routers, on each worker.",
                    unit="short",
                    queries=(Query(now("worker_in_flight", by="worker"), "{{worker}}"),),
                ),
                Panel(
                    title="Share of requests",
                    description="Equal shares are no aim: warm workers get more. One far above the others with a first token "
                    "that suffers is too hot; see docs/policies.md for policy.ring_bound and leave_weight.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(f"{_BY_WORKER} / ignoring(worker) group_left() (sum({_BY_WORKER}) > 0)", "{{worker}}"),
                    ),
                ),
                Panel(
                    title="Prefill that waits",
                    description="Prompt tokens sent whose first token is not back.",
                    unit="short",
                    queries=(Query(now("worker_queued_prefill_tokens", by="worker"), "{{worker}}"),),
                ),
                Panel(
                    title="Prefill rate",
                    description="Learnt, tokens a second. A worker that is slower than its equals shares its GPU, or is ill.",
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
                    description="Before the first byte; clients see none of it. By cause.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("retries_total", by="cause"), "{{cause}}"),),
                ),
                Panel(
                    title="Retry budget",
                    description="Each router's: retries that it may make now, and are under way. Empty: failures go on to "
                    "clients, so that a fleet that fails is not asked more than clients ask.",
                    unit="short",
                    queries=(
                        Query(now("retry_budget", by="instance"), "left {{instance}}"),
                        Query(now("retries_in_flight", by="instance"), "under way {{instance}}"),
                        Query(worst("retry_budget_max"), "most"),
                    ),
                ),
                Panel(
                    title="Rejected replies",
                    description="Replies of workers that the router rejected, by what is wrong with them. A worker whose "
                    "engine dies ends streams so. Any other kind is a broken worker, a proxy before it, or an attack.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("rejected_replies_total", by="kind"), "{{kind}}"),),
                ),
                Panel(
                    title="Streams that broke",
                    description="exact, text and finished went on with another worker; unsafe and failed left half an answer.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("resumptions_total", by="outcome"), "{{outcome}}"),),
                ),
                Panel(
                    title="Pause of a stream that went on",
                    description="From the break to the next event.",
                    unit="s",
                    queries=(
                        Query(quantile(0.5, "resumption_gap_seconds"), "p50"),
                        Query(quantile(0.99, "resumption_gap_seconds"), "p99"),
                    ),
                ),
                Panel(
                    title="Requests given up",
                    description="Workers died under them, one after another: look for the request that kills them, by its id "
                    "in the log.",
                    unit="cps",
                    queries=(Query(rate("given_up_requests_total"), "given up"),),
                ),
                Panel(
                    title="Refused before a worker was asked",
                    description="By why: limits of tenants, a full queue, no worker.",
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
                    description="Of each router. What the autoscaler goes by.",
                    unit="short",
                    queries=(Query(now("live_requests", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Clients' connections",
                    description="Of those that there may be.",
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
                    title="Held in memory",
                    description="Of requests under way, of what they may take.",
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
                    title="Bounds",
                    description="How full each other bound of a router is; at 1 it refuses, or forgets the oldest.",
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
                    title="Nothing more could be held",
                    description="Requests refused, and clients cut that do not read, since memory for them was used up.",
                    unit="cps",
                    queries=(Query(rate("held_refusals_total", by="kind"), "{{kind}}"),),
                ),
                Panel(
                    title="Costly bodies that wait",
                    description="For one of the processes that read them.",
                    unit="short",
                    queries=(Query(now("parsing_waiting", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Connections cut",
                    description="By why: clients that send too slowly, or do not read.",
                    unit="cps",
                    queries=(Query(rate("cut_connections_total", by="cause"), "{{cause}}"),),
                ),
                Panel(
                    title="Traces",
                    description="Requests whose spans were sent to the collector, or dropped since it takes them too slowly.",
                    unit="cps",
                    queries=(
                        Query(rate("sent_traces_total"), "sent"),
                        Query(rate("dropped_traces_total"), "dropped"),
                    ),
                ),
                Panel(
                    title="Traces that wait",
                    description="For the collector, and how many may.",
                    unit="short",
                    queries=(
                        Query(now("waiting_traces"), "wait"),
                        Query(now("max_waiting_traces"), "may wait"),
                    ),
                ),
                Panel(
                    title="What failed beside the requests",
                    description="Tasks that began again, and sources of workers that could not be read. Should be nothing.",
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
