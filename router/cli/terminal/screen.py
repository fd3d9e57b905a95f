"""What ``top`` and ``workers`` show, from what the admin port told. No clock, no I/O.

What comes from outside, such as a model's name, may hold control characters, which a terminal would obey: none is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.core.printable import printable

RECENT_SAMPLES = 31
"""Of the hit ratio: five minutes, a sample each ten seconds."""
DECISIONS = 8
ERRORS = 4
LEFT_FOR_OTHERS, LEFT_FOR_ERRORS = DECISIONS + 9, ERRORS + 2
"""Lines of a screen that are not workers'; the latter where probes fail."""
_STYLES = {"up": "green", "starting": "yellow", "asleep": "blue", "ejected": "red"}


def plain(text: object, style: str = "") -> Text:
    """Printable, and rich reads no markup in it."""
    return Text(printable(text), style)


def top_screen(shown: dict[str, Any], height: int | None = None) -> RenderableType:
    """``shown``: a snapshot. ``height``: lines of the terminal; None: as many as it takes."""
    most = most_errors = None
    if height is not None:
        left = LEFT_FOR_OTHERS + (LEFT_FOR_ERRORS if any(map(_last_error, shown["workers"])) else 0)
        most, most_errors = max(height - left, 1), ERRORS
    return Group(
        _glance(shown),
        worker_table(shown["workers"], most),
        error_table(shown["workers"], most_errors),
        _decision_table(shown["decisions"][:DECISIONS]),
    )


def worker_table(workers: Sequence[dict[str, Any]], most: int | None = None) -> Table:
    """Those that are not up first, then the busiest; ``most`` rows of them.

    Live requests; prefill tokens that wait; hits of the prompts' tokens; how full its cache is believed to be; how fast it
    prefills. Heads are short, since a terminal has 80 columns.
    """
    ordered = sorted(workers, key=lambda one: (one["state"] == "up", -one["in_flight"], one["name"]))
    shown = ordered[:most]
    hidden = len(ordered) - len(shown)
    table = _table(
        ("worker", "state", ">live", ">prefill", ">hits", ">warm", ">tokens/s", "URL"),
        f"and {hidden} more" if hidden else None,
    )
    for one in shown:
        table.add_row(
            plain(one["name"]),
            plain(one["state"], _STYLES.get(one["state"], "")),
            f"{one['in_flight']:,}",
            f"{one['queued_prefill_tokens']:,}",
            _percent(one["cached_tokens"], one["prompt_tokens"]),
            _percent(one["index_blocks"], one["max_blocks"]),
            f"{one['prefill_rate']:,.0f}",
            plain(one["url"]),
        )
    return table


def error_table(workers: Sequence[dict[str, Any]], most: int | None = None) -> RenderableType:
    """What is wrong with workers whose probes fail, and since when each is in its state; nothing where none fails."""
    ill = sorted(filter(_last_error, workers), key=lambda one: (one["state"] == "up", one["name"]))
    if not ill:
        return Group()
    table = _table(
        ("worker", "state", "since", "last error"), f"and {len(ill) - most} more" if most and len(ill) > most else None
    )
    for one in ill[:most]:
        style = _STYLES.get(one["state"], "")
        table.add_row(
            plain(one["name"]), plain(one["state"], style), plain(one.get("since") or "-"), plain(one["last_error"])
        )
    return table


def _last_error(worker: dict[str, Any]) -> str | None:
    """Of a router that tells it."""
    return worker.get("last_error")


def _glance(shown: dict[str, Any]) -> Text:
    workers = shown["workers"]
    up = sum(one["state"] == "up" for one in workers)
    parts = [
        f"warmroute {shown['version']}",
        str(shown["policy"]),
        f"{up} of {len(workers)} workers up",
        f"{shown['live_requests']:,} live",
        f"{shown['queued']:,} waiting",
        f"hits {recent_hits(shown['history'])} in five minutes",
        f"{shown['saved_prefill_s']:,.0f} GPU seconds saved",
    ]
    if shown["sessions"] is not None:
        store = "up" if shown["sessions"]["store_up"] else "AWAY"
        parts.append(f"{shown['sessions']['turns']:,} turns, store {store}")
    return plain(" · ".join(parts))


def recent_hits(history: Sequence[Sequence[float]]) -> str:
    """``history``: samples of time and sums of tokens: prompts', predicted, cached."""
    recent = history[-RECENT_SAMPLES:]
    if not recent:
        return "-"
    first, last = recent[0], recent[-1]
    return _percent(last[3] - first[3], last[1] - first[1])


def _decision_table(decisions: Sequence[dict[str, Any]]) -> Table:
    table = _table(("request", "model", "worker", "why", ">status", ">prompt", ">expected", ">cached", ">first"))
    for one in decisions:
        first = one["time_to_first_token_s"] if one["stream"] else 0.0  # else it is the whole answer's
        table.add_row(
            plain(one["request_id"]),
            plain(one["model"]),
            plain(one["worker"] or "-"),
            plain(one["reason"] or "-"),
            plain(one["status"] or one["outcome"], "" if 0 < one["status"] < 400 else "red"),
            f"{one['prompt_tokens']:,}",
            f"{one['predicted_cached_tokens']:,}",
            "-" if one["actual_cached_tokens"] is None else f"{one['actual_cached_tokens']:,}",
            f"{first * 1e3:,.0f} ms" if first > 0 else "-",
        )
    return table


def _table(heads: Sequence[str], caption: str | None = None) -> Table:
    """``>`` before a head: its column is of figures."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    for head in heads:
        right = head.startswith(">")
        table.add_column(head.removeprefix(">"), justify="right" if right else "left", no_wrap=True)
    return table


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else "-"
