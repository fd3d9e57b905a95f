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
                    description="Of all prompt tokens, those that a worker had cached. What is normal depends on the "
                    "traffic: long conversations reach 0.9, unrelated questions little. Watch for changes.",
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
                    description="What the router believed when it chose. Far above the actual one: workers evict sooner than "
                    "the index thinks, or somebody else fills their caches.",
                    unit="percentunit",
                    kind="stat",
                    width=6,
                    maximum=1,
                    queries=(Query(share(_PREDICTED, _PROMPT), "predicted"),),
                ),
                Panel(
                    title="Tokens not computed",
                    description="Prompt tokens that caches spared, over the time shown.",
                    unit="short",
                    kind="stat",
                    width=6,
                    queries=(Query(increase("actual_cached_tokens_total", MODEL), "tokens"),),
                ),
                Panel(
                    title="GPU seconds saved",
                    description="Prefill that caches spared over the time shown, at the rates learnt of each worker.",
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
                    title="Predicted and actual",
                    description="The two should lie together. See the two figures above.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(share(_CACHED, _PROMPT), "actual"),
                        Query(share(_PREDICTED, _PROMPT), "predicted"),
                    ),
                ),
                Panel(
                    title="By model",
                    description="A model whose line falls while others' stay has changed its prompts: its system message, "
                    "its tools, or their order.",
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
                    title="By worker",
                    description="A worker far below the others has restarted, is small, or is a newcomer whose cache fills.",
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
                    description="new: nobody had them. elsewhere: another worker had them, and waiting for it would have "
                    "taken longer, or it was not there. gone: the chosen worker had evicted them; more cache, or fewer "
                    "conversations a worker, would help.",
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
                    title="Prompt tokens a second",
                    description="All, and those that caches spared.",
                    unit="cps",
                    queries=(Query(_PROMPT, "asked"), Query(_CACHED, "cached")),
                ),
                Panel(
                    title="GPU seconds saved, a second",
                    description="As many GPUs would be needed more for the same prompts without caches, prefill alone.",
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
                    description="By the policy's reason; docs/policies.md has them.",
                    unit="reqps",
                    kind="stack",
                    queries=(Query(rate("routing_decisions_total", by="reason"), "{{reason}}"),),
                ),
                Panel(
                    title="Index fill",
                    description="Blocks that each worker is believed to hold, of those that its cache has room for. Full is "
                    "normal: the oldest go.",
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
                    title="Turns whose prefix was warm",
                    description="Of sessions' turns behind others. Falls when sessions rest longer than caches keep them, or "
                    "when their prompts' beginnings change: see State, why prefixes broke.",
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
                    description="Of those that the router has seen lately.",
                    unit="short",
                    queries=(Query(total(series("remembered_sessions"), "instance"), "{{instance}}"),),
                ),
            ),
        ),
    ),
)
