"""Sessions: their turns, their store, and how they are kept within their windows."""

from __future__ import annotations

from grafana.panels import Board, Limit, Panel, Query
from grafana.queries import now, quantile, rate, series, share, worst

BOARD = Board(
    name="state",
    title="Warmroute / State",
    description="Turns, the session store, compaction, the janitor, recall.",
    rows=(
        (
            "At a glance",
            (
                Panel(
                    title="Store",
                    description="1 while every router reaches the session store. Stateless requests do not need it.",
                    unit="bool_yes_no",
                    kind="stat",
                    width=6,
                    base="red",
                    limits=(Limit(1, "green"),),
                    queries=(Query(f"min({series('store_up')})", "up"),),
                ),
                Panel(
                    title="Turns a second",
                    description="That asked a model.",
                    unit="reqps",
                    kind="stat",
                    width=6,
                    queries=(Query(rate("turns_total"), "turns"),),
                ),
                Panel(
                    title="Compression",
                    description="Tokens of whole logs over tokens sent: as many times shorter are the prompts.",
                    unit="short",
                    kind="stat",
                    width=6,
                    queries=(
                        Query(
                            share(rate("context_raw_tokens_total"), rate("context_sent_tokens_total")), "raw over sent"
                        ),
                    ),
                ),
                Panel(
                    title="Ends of turns yet to be stored",
                    description="They wait in the journal for the store; clients have their answers. Should be none.",
                    unit="short",
                    kind="stat",
                    width=6,
                    base="green",
                    limits=(Limit(1, "yellow"),),
                    queries=(Query(now("write_behind_items"), "waiting"),),
                ),
            ),
        ),
        (
            "Turns",
            (
                Panel(
                    title="Turns by outcome",
                    description="repeated: answered again from the log. refused: 4xx. failed: ours or a worker's. lost: "
                    "answered without history, since the store was away.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("turns_total", by="outcome"), "{{outcome}}"),),
                ),
                Panel(
                    title="Turns by door",
                    description="Sessions, responses, conversations.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("turns_total", by="door"), "{{door}}"),),
                ),
                Panel(
                    title="Turns that met another of their session",
                    description="By what was wished: to wait, be refused, go on in a copy. And turns that lost their session.",
                    unit="cps",
                    queries=(
                        Query(rate("turn_conflicts_total", by="policy"), "{{policy}}"),
                        Query(rate("fence_rejections_total"), "lost"),
                    ),
                ),
                Panel(
                    title="Bytes that clients did not send",
                    description="Of prompts, the history that the router had.",
                    unit="bytes",
                    queries=(Query(rate("spared_bytes_total"), "a second"),),
                ),
                Panel(
                    title="Items of a session",
                    description="At the end of each turn.",
                    unit="short",
                    queries=(
                        Query(quantile(0.5, "session_items"), "p50"),
                        Query(quantile(0.95, "session_items"), "p95"),
                    ),
                ),
                Panel(
                    title="Turns and copies refused since a log is full",
                    description="sessions.max_entries and max_session_bytes.",
                    unit="cps",
                    queries=(Query(rate("full_sessions_total"), "refused"),),
                ),
            ),
        ),
        (
            "The store",
            (
                Panel(
                    title="Fetching a history",
                    description="Claim included. memory: nothing of it was missing here.",
                    unit="s",
                    limits=(Limit(0.05, "orange"),),
                    queries=(
                        Query(quantile(0.99, "state_load_seconds", 'stage="fetch"', by="tier"), "p99 {{tier}}"),
                        Query(quantile(0.5, "state_load_seconds", 'stage="fetch"', by="tier"), "p50 {{tier}}"),
                    ),
                ),
                Panel(
                    title="Parsing it",
                    description="Deserialisation of what was fetched. Grows with what a router has not yet seen of a session.",
                    unit="s",
                    queries=(Query(quantile(0.99, "state_load_seconds", 'stage="parse"', by="tier"), "p99 {{tier}}"),),
                ),
                Panel(
                    title="Breaker",
                    description="0 closed, 1 trying, 2 open: the store is not asked.",
                    unit="short",
                    limits=(Limit(2, "red"),),
                    queries=(Query(worst("store_breaker_state", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Calls that failed",
                    description="Of turns and pages; and claims that were not given back.",
                    unit="cps",
                    queries=(
                        Query(rate("store_failures_total"), "calls"),
                        Query(rate("given_up_claims_total"), "claims"),
                    ),
                ),
                Panel(
                    title="Calls under way",
                    description="Of those that there may be.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            f"{now('store_calls', by='instance')} / {now('max_store_calls', by='instance')}",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    title="Tenants in their own way",
                    description="Calls that wait for their tenants' own, and requests refused: for such waiting (429), and "
                    "since a tenant has stored as much as it may (storage_full).",
                    unit="short",
                    queries=(
                        Query(now("store_waiting_calls"), "waiting"),
                        Query(rate("store_crowded_total"), "refused a second"),
                        Query(rate("storage_refusals_total"), "storage_full a second"),
                    ),
                ),
                Panel(
                    title="The fullest tenant",
                    description="The largest share of its room that any tenant has used: sessions.max_tenant_bytes and "
                    "max_tenant_sessions. At 1 it is refused with storage_full.",
                    unit="percentunit",
                    limits=(Limit(0.8, "orange"), Limit(0.95, "red")),
                    queries=(Query(worst("fullest_tenant_ratio"), "used"),),
                ),
                Panel(
                    title="Redis throws keys away",
                    description="Sessions may be among them: maxmemory-policy must be noeviction. 1: it may.",
                    unit="short",
                    limits=(Limit(1, "red"),),
                    queries=(
                        Query(worst("store_may_evict", by="instance"), "may, {{instance}}"),
                        Query(rate("store_evicted_keys_total"), "a second"),
                    ),
                ),
                Panel(
                    title="Write-behind lag",
                    description="Age of the oldest end of a turn that the store has yet to take.",
                    unit="s",
                    limits=(Limit(60, "orange"),),
                    queries=(Query(worst("write_behind_seconds", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Journal",
                    description="Of what it may hold.",
                    unit="percentunit",
                    maximum=1,
                    limits=(Limit(0.5, "orange"), Limit(0.8, "red")),
                    queries=(
                        Query(
                            f"{now('journal_bytes', by='instance')} / ({now('max_journal_bytes', by='instance')} > 0)",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    title="Histories in memory",
                    description="Of what they may take. Full is normal.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            f"{now('hot_bytes', by='instance')} / {now('max_hot_bytes', by='instance')}", "{{instance}}"
                        ),
                    ),
                ),
            ),
        ),
        (
            "Context",
            (
                Panel(
                    title="Compression by strategy",
                    description="Tokens of whole logs over tokens sent.",
                    unit="short",
                    queries=(
                        Query(
                            share(
                                rate("context_raw_tokens_total", by="strategy"),
                                rate("context_sent_tokens_total", by="strategy"),
                            ),
                            "{{strategy}}",
                        ),
                    ),
                ),
                Panel(
                    title="Why prefixes broke",
                    description="compaction is meant to be seldom. system_changed, tools_changed: a client changes what stands "
                    "first, which costs the whole prefix each time. moved: another worker answers.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("prefix_breaks_total", by="cause"), "{{cause}}"),),
                ),
                Panel(
                    title="Histories cut, and looks that came to nothing",
                    description="docs/context.md has the results. failed and rejected: the model that writes notes; "
                    "over_budget: the tenant's day is spent.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("compactions_total", by="result"), "{{result}}"),),
                ),
                Panel(
                    title="Tokens that cuts made workers compute",
                    description="The price of compaction, beside what notes cost.",
                    unit="cps",
                    queries=(
                        Query(rate("recomputed_tokens_total"), "computed anew"),
                        Query(rate("janitor_tokens_total", by="kind"), "notes: {{kind}}"),
                    ),
                ),
                Panel(
                    title="Janitor's lag",
                    description="From the turn that passed a mark until the view was changed. No turn waits for it.",
                    unit="s",
                    queries=(
                        Query(quantile(0.5, "compaction_lag_seconds"), "p50"),
                        Query(quantile(0.99, "compaction_lag_seconds"), "p99"),
                    ),
                ),
                Panel(
                    title="Sessions that wait for the janitor",
                    description="Beyond the bound one is looked at behind its next turn.",
                    unit="short",
                    queries=(
                        Query(now("janitor_waiting"), "waiting"),
                        Query(now("max_janitor_waiting"), "may wait"),
                    ),
                ),
                Panel(
                    title="Searching for what left prompts",
                    description="Turns wait for it, up to context.recall_timeout_s.",
                    unit="s",
                    queries=(
                        Query(quantile(0.5, "recall_duration_seconds"), "p50"),
                        Query(quantile(0.99, "recall_duration_seconds"), "p99"),
                    ),
                ),
                Panel(
                    title="Searches by outcome",
                    description="unavailable: the index did not answer in time, and the question went alone.",
                    unit="cps",
                    kind="stack",
                    queries=(
                        Query(rate("recalls_total", by="outcome"), "{{outcome}}"),
                        Query(rate("recalls_by_words_alone_total"), "by words alone"),
                    ),
                ),
                Panel(
                    title="The index of what left prompts",
                    description="Calls that fail leave items unindexed till the session's next turn. Evictions: its bounds are "
                    "reached, and what is oldest is found no more.",
                    unit="cps",
                    queries=(
                        Query(rate("recall_index_failures_total"), "failures"),
                        Query(rate("recall_evictions_total", by="kind"), "evicted {{kind}}"),
                    ),
                ),
                Panel(
                    title="The index's bounds",
                    description="Its calls and its bytes, of those that there may be.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            f"{now('recall_calls', by='instance')} / {now('max_recall_calls', by='instance')}",
                            "calls {{instance}}",
                        ),
                        Query(
                            f"{now('recall_bytes', by='instance')} / {now('max_recall_bytes', by='instance')}",
                            "bytes {{instance}}",
                        ),
                    ),
                ),
                Panel(
                    title="Error of counted prompts",
                    description="Share of a prompt's tokens by which the router's count was off from the worker's.",
                    unit="percentunit",
                    queries=(Query(quantile(0.95, "prompt_tokens_error_ratio", by="model"), "p95 {{model}}"),),
                ),
                Panel(
                    title="Tokens counted",
                    description="Of sessions' messages, by what counted them.",
                    unit="cps",
                    kind="stack",
                    queries=(
                        Query(rate("counted_tokens_total", by="counter"), "{{counter}}"),
                        Query(rate("token_count_fallbacks_total", by="cause"), "texts estimated: {{cause}}"),
                    ),
                ),
            ),
        ),
    ),
)
