"""Whether prompts' beginnings are found in caches, why not, and what that spares."""

from __future__ import annotations

from grafana.panels import Board, Limit, Panel, Query
from grafana.queries import increase, now, rate, series, share, total

MODEL = 'model=~"$model"'

_CACHED = rate("actual_cached_tokens_total", MODEL)
_PREDICTED = rate("predicted_cached_tokens_total", MODEL)
_PROMPT = rate("prompt_tokens_total", MODEL)

BOARD = Board(
    name="cache",
    title="Warmroute / Cache",
    description="Prefix caching as the workers count it, beside what the router expected.",
    by_model=True,
    rows=(
        (
            "At a glance",
            (
                Panel(
                    title="Hit ratio",
                    description="Share of prompt tokens that a worker had in its cache. The normal value depends on "
                    "the traffic: long conversations reach 0.9, unrelated questions little. Watch for changes.",
                    unit="percentunit",
                    kind="stat",
                    width=6,
                    maximum=1,
                    base="red",
                    limits=(Limit(0.2, "yellow"), Limit(0.5, "green")),
                    queries=(Query(share(_CACHED, _PROMPT), "cached"),),
                ),
                Panel(
                    title="Predicted hit ratio",
                    description="Hit ratio that the router expected when it chose the worker. If it is far above the "
                    "actual one, workers evict sooner than the index assumes, or other traffic fills their caches.",
                    unit="percentunit",
                    kind="stat",
                    width=6,
                    maximum=1,
                    queries=(Query(share(_PREDICTED, _PROMPT), "predicted"),),
                ),
                Panel(
                    title="Prompt tokens from caches",
                    description="Prompt tokens that caches saved in the time shown.",
                    unit="short",
                    kind="stat",
                    width=6,
                    queries=(Query(increase("actual_cached_tokens_total", MODEL), "tokens"),),
                ),
                Panel(
                    title="GPU seconds saved",
                    description="Seconds of prefill that caches saved in the time shown, at each worker's learnt rate.",
                    unit="s",
                    kind="stat",
                    width=6,
                    queries=(Query(increase("worker_saved_prefill_seconds_total"), "seconds"),),
                ),
            ),
        ),
        (
            "Hits",
            (
                Panel(
                    title="Predicted and actual hit ratio",
                    description="The two lines should lie together.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(share(_CACHED, _PROMPT), "actual"),
                        Query(share(_PREDICTED, _PROMPT), "predicted"),
                    ),
                ),
                Panel(
                    title="Hit ratio by model",
                    description="If one model's line falls and the others stay, its prompts have changed: the system "
                    "message, the tools, or their order.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            share(
                                rate("actual_cached_tokens_total", MODEL, by="model"),
                                rate("prompt_tokens_total", MODEL, by="model"),
                            ),
                            "{{model}}",
                        ),
                    ),
                ),
                Panel(
                    title="Hit ratio by worker",
                    description="A worker far below the others has restarted, is small, or is new and fills its cache.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            share(
                                rate("worker_cached_tokens_total", by="worker"),
                                rate("worker_prompt_tokens_total", by="worker"),
                            ),
                            "{{worker}}",
                        ),
                    ),
                ),
                Panel(
                    title="Why tokens were computed",
                    description="new: no worker had them. elsewhere: another worker had them, but waiting for it "
                    "would have taken longer, or it was out. gone: the chosen worker had evicted them; more cache or "
                    "fewer conversations per worker would help.",
                    unit="cps",
                    kind="stack",
                    queries=(Query(rate("uncached_tokens_total", by="reason"), "{{reason}}"),),
                ),
            ),
        ),
        (
            "What it spares",
            (
                Panel(
                    title="Prompt tokens per second",
                    description="All prompt tokens, and those that caches saved.",
                    unit="cps",
                    queries=(Query(_PROMPT, "asked"), Query(_CACHED, "cached")),
                ),
                Panel(
                    title="GPU seconds saved per second",
                    description="GPUs that the same prompts would need in addition without caches, for prefill alone.",
                    unit="short",
                    kind="stack",
                    queries=(Query(rate("worker_saved_prefill_seconds_total", by="worker"), "{{worker}}"),),
                ),
            ),
        ),
        (
            "Decisions",
            (
                Panel(
                    title="Why a worker was chosen",
                    description="Decisions by the policy's reason; docs/policies.md explains the reasons.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("routing_decisions_total", by="reason"), "{{reason}}"),),
                ),
                Panel(
                    title="Prefix index fill",
                    description="Blocks that each worker is believed to hold, as a share of its cache. A full index "
                    "is normal: the oldest blocks go first.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            f"{now('prefix_index_blocks', by='worker')} / {now('prefix_index_max_blocks', by='worker')}",
                            "{{worker}}",
                        ),
                    ),
                ),
                Panel(
                    title="Turns with a warm prefix",
                    description="Share of sessions' later turns whose earlier turns were cached. It falls when "
                    "sessions rest longer than caches keep them, or when prompts begin differently: see the board "
                    "State, why prefixes broke.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            share(
                                rate("turn_prefixes_total", 'state="warm"'),
                                rate("turn_prefixes_total", 'state=~"warm|cold"'),
                            ),
                            "warm",
                        ),
                    ),
                ),
                Panel(
                    title="Sessions whose worker is remembered",
                    description="Sessions that the router has seen lately.",
                    unit="short",
                    queries=(Query(total(series("remembered_sessions"), "instance"), "{{instance}}"),),
                ),
            ),
        ),
    ),
)
