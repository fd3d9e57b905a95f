"""Sessions: their turns, their store, and how they are kept within their windows."""

from __future__ import annotations

from grafana.panels import Board, Limit, Panel, Query
from grafana.queries import now, quantile, rate, series, share, worst

BOARD = Board(
    name="state",
    title="Warmroute / State",
    description="Turns, the session store, compaction and recall.",
    rows=(
        (
            "At a glance",
            (
                Panel(
                    title="Session store",
                    description="1 while every router reaches the session store. Stateless requests do not need it.",
                    unit="bool_yes_no",
                    kind="stat",
                    width=6,
                    base="red",
                    limits=(Limit(1, "green"),),
                    queries=(Query(f"min({series('store_up')})", "up"),),
                ),
                Panel(
                    title="Turns per second",
                    description="Turns that asked a model.",
                    unit="reqps",
                    kind="stat",
                    width=6,
                    queries=(Query(rate("turns_total"), "turns"),),
                ),
                Panel(
                    title="Compression",
                    description="Tokens of whole histories divided by tokens sent: prompts are this many times "
                    "shorter.",
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
                    title="Turns not yet stored",
                    description="Finished turns that wait in the journal for the store. Clients have their answers. "
                    "Should be zero.",
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
                    description="repeated: answered again from the log. refused: 4xx. failed: a fault of the router "
                    "or of a worker. lost: answered without history because the store was away.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("turns_total", by="outcome"), "{{outcome}}"),),
                ),
                Panel(
                    title="Turns by API",
                    description="Sessions, responses, conversations.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("turns_total", by="api"), "{{api}}"),),
                ),
                Panel(
                    title="Turns that met another turn of their session",
                    description="By what they did: wait, be refused, continue in a copy. And turns that lost their "
                    "session.",
                    unit="cps",
                    queries=(
                        Query(rate("turn_conflicts_total", by="policy"), "{{policy}}"),
                        Query(rate("fence_rejections_total"), "lost"),
                    ),
                ),
                Panel(
                    title="Bytes that clients did not send",
                    description="Bytes of prompts that the session held already.",
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
                    title="Refused because a log is full",
                    description="Turns and copies beyond sessions.max_entries or sessions.max_session_bytes.",
                    unit="cps",
                    queries=(Query(rate("full_sessions_total"), "refused"),),
                ),
            ),
        ),
        (
            "The store",
            (
                Panel(
                    title="Time to fetch a history",
                    description="The claim is included. memory: the router had all of it.",
                    unit="s",
                    limits=(Limit(0.05, "orange"),),
                    queries=(
                        Query(quantile(0.99, "state_load_seconds", 'stage="fetch"', by="tier"), "p99 {{tier}}"),
                        Query(quantile(0.5, "state_load_seconds", 'stage="fetch"', by="tier"), "p50 {{tier}}"),
                    ),
                ),
                Panel(
                    title="Time to parse a history",
                    description="Grows with the part of a session that the router has not seen yet.",
                    unit="s",
                    queries=(Query(quantile(0.99, "state_load_seconds", 'stage="parse"', by="tier"), "p99 {{tier}}"),),
                ),
                Panel(
                    title="Circuit breaker",
                    description="0 closed, 1 trying, 2 open: the store is not asked.",
                    unit="short",
                    limits=(Limit(2, "red"),),
                    queries=(Query(worst("store_breaker_state", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Failed calls to the store",
                    description="Calls of turns and pages, and claims that were not released.",
                    unit="cps",
                    queries=(
                        Query(rate("store_failures_total"), "calls"),
                        Query(rate("abandoned_claims_total"), "claims"),
                    ),
                ),
                Panel(
                    title="Calls to the store in progress",
                    description="As a share of the calls allowed.",
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
                    title="Calls held up by their own tenant",
                    description="Calls that wait for other calls of their tenant; requests refused for that (429); "
                    "and requests refused because the tenant has stored as much as it may (storage_full).",
                    unit="short",
                    queries=(
                        Query(now("store_waiting_calls"), "waiting"),
                        Query(rate("store_crowded_total"), "refused a second"),
                        Query(rate("storage_refusals_total"), "storage_full a second"),
                    ),
                ),
                Panel(
                    title="Fullest tenant",
                    description="Largest share of sessions.max_tenant_bytes or sessions.max_tenant_sessions that any "
                    "tenant uses. At 1 the tenant is refused with storage_full.",
                    unit="percentunit",
                    limits=(Limit(0.8, "orange"), Limit(0.95, "red")),
                    queries=(Query(worst("fullest_tenant_ratio"), "used"),),
                ),
                Panel(
                    title="Redis evicts keys",
                    description="1: Redis may evict, sessions included. Set its maxmemory-policy to noeviction.",
                    unit="short",
                    limits=(Limit(1, "red"),),
                    queries=(
                        Query(worst("store_may_evict", by="instance"), "may, {{instance}}"),
                        Query(rate("store_evicted_keys_total"), "a second"),
                    ),
                ),
                Panel(
                    title="Write-behind lag",
                    description="Age of the oldest finished turn that the store has not taken yet.",
                    unit="s",
                    limits=(Limit(60, "orange"),),
                    queries=(Query(worst("write_behind_seconds", by="instance"), "{{instance}}"),),
                ),
                Panel(
                    title="Journal",
                    description="Bytes in the journal as a share of sessions.max_journal_bytes.",
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
                    description="Bytes as a share of sessions.max_cache_bytes. Full is normal.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            f"{now('session_cache_bytes', by='instance')} / {now('max_session_cache_bytes', by='instance')}",
                            "{{instance}}",
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
                    description="Tokens of whole histories divided by tokens sent.",
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
                    description="compaction should be rare. system_changed, tools_changed: a client changes the "
                    "beginning of its prompt, which costs the whole prefix each time. moved: another worker answers.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("prefix_breaks_total", by="cause"), "{{cause}}"),),
                ),
                Panel(
                    title="Compactions by result",
                    description="docs/context.md explains the results. failed, rejected: the model that writes "
                    "summaries; over_budget: the tenant's budget of the day is used up.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("compactions_total", by="result"), "{{result}}"),),
                ),
                Panel(
                    title="Tokens computed again because of cuts",
                    description="The price of compaction, beside the tokens that summaries use.",
                    unit="cps",
                    queries=(
                        Query(rate("recomputed_tokens_total"), "computed anew"),
                        Query(rate("janitor_tokens_total", by="kind"), "notes: {{kind}}"),
                    ),
                ),
                Panel(
                    title="Compactor's lag",
                    description="Time from the turn that passed the high mark until its history is cut. No turn waits "
                    "for it.",
                    unit="s",
                    queries=(
                        Query(quantile(0.5, "compaction_lag_seconds"), "p50"),
                        Query(quantile(0.99, "compaction_lag_seconds"), "p99"),
                    ),
                ),
                Panel(
                    title="Sessions that wait for the compactor",
                    description="Beyond the bound a session is compacted after its next turn.",
                    unit="short",
                    queries=(
                        Query(now("compactions_waiting"), "waiting"),
                        Query(now("max_compactions_waiting"), "may wait"),
                    ),
                ),
                Panel(
                    title="Time of recall searches",
                    description="Turns wait for them, up to context.recall_timeout_s.",
                    unit="s",
                    queries=(
                        Query(quantile(0.5, "recall_duration_seconds"), "p50"),
                        Query(quantile(0.99, "recall_duration_seconds"), "p99"),
                    ),
                ),
                Panel(
                    title="Recall searches by outcome",
                    description="unavailable: the index did not answer in time, and the question was sent without "
                    "recalled items.",
                    unit="cps",
                    kind="stack",
                    queries=(
                        Query(rate("recalls_total", by="outcome"), "{{outcome}}"),
                        Query(rate("recalls_by_words_alone_total"), "by words alone"),
                    ),
                ),
                Panel(
                    title="Recall index: failures and evictions",
                    description="After a failed call the session's next turn tries again. Evictions: a bound is "
                    "reached, and the oldest items are found no more.",
                    unit="cps",
                    queries=(
                        Query(rate("recall_index_failures_total"), "failures"),
                        Query(rate("recall_evictions_total", by="kind"), "evicted {{kind}}"),
                    ),
                ),
                Panel(
                    title="Recall index: bounds",
                    description="Calls and bytes as a share of what is allowed.",
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
                    title="Error of token counts",
                    description="Difference between the router's and the worker's count, as a share of a prompt's "
                    "tokens.",
                    unit="percentunit",
                    queries=(Query(quantile(0.95, "prompt_tokens_error_ratio", by="model"), "p95 {{model}}"),),
                ),
                Panel(
                    title="Tokens counted",
                    description="Tokens of sessions' messages, by what counted them.",
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
