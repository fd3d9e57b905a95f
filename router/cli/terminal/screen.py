"""Builds the screens of ``top`` and ``workers`` from the admin port's answers. No clock, no I/O.

Must never print control characters: a text from outside, such as a model's name, may contain them to command the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.core.printable import printable

RECENT_SAMPLES = 31
"""Samples behind the recent hit ratio: five minutes, one sample each ten seconds."""
DECISIONS = 8
ERRORS = 4
LEFT_FOR_OTHERS, LEFT_FOR_ERRORS = DECISIONS + 9, ERRORS + 2
"""Lines of a screen beside the workers' rows. The second number is added if a probe fails."""
_STYLES = {"up": "green", "starting": "yellow", "asleep": "blue", "ejected": "red"}


def plain(text: object, style: str = "") -> Text:
    """Text without control characters and without rich's markup."""
    return Text(printable(text), style)


def top_screen(shown: dict[str, Any], height: int | None = None) -> RenderableType:
    """The screen of ``top``. ``shown``: a snapshot. ``height``: lines of the terminal; None: no limit."""
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
    """At most ``most`` workers: first those that are not up, then the busiest.

    live: requests in flight. prefill: queued prefill tokens. hits: cached share of the prompt tokens. warm: share of the
    cache that the index knows. tokens/s: prefill rate. The heads are short, since a terminal has 80 columns.
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
    """The workers with failed probes: state, its start, and the last error. Empty if no probe fails."""
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
    """The error of the worker's probes. None without one, and from routers that do not send this field."""
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
    """The hit ratio of the last five minutes. ``history``: as in ``Snapshot``."""
    recent = history[-RECENT_SAMPLES:]
    if not recent:
        return "-"
    first, last = recent[0], recent[-1]
    return _percent(last[3] - first[3], last[1] - first[1])


def _decision_table(decisions: Sequence[dict[str, Any]]) -> Table:
    table = _table(("request", "model", "worker", "why", ">status", ">prompt", ">expected", ">cached", ">first"))
    for one in decisions:
        first = one["time_to_first_token_s"] if one["stream"] else 0.0  # without a stream it is the whole answer's time
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
    """An empty table. A head that begins with ``>`` aligns its column to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    for head in heads:
        right = head.startswith(">")
        table.add_column(head.removeprefix(">"), justify="right" if right else "left", no_wrap=True)
    return table


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else "-"
