"""A dashboard as a page of HTML, drawn from its JSON and what Prometheus answered: what Grafana would show, in outline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

ROW_PX, WIDTH, HEIGHT, LEFT = 38, 600, 190, 62
COLOURS = ("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300")
_NAMED = {"text": "#d8d9da", "green": "#73bf69", "yellow": "#fade2a", "orange": "#ff9830", "red": "#f2495c"}
STYLE = f"""
body {{ margin: 0; padding: 16px; width: 1400px; background: #111217; color: #d8d9da; font: 13px sans-serif }}
h1 {{ font-size: 20px; font-weight: 500; margin: 0 0 12px }}
main {{ display: grid; grid-template-columns: repeat(24, 1fr); grid-auto-rows: {ROW_PX}px; gap: 8px }}
section {{ background: #181b1f; border: 1px solid #2c2f36; border-radius: 3px; padding: 6px 8px; overflow: hidden }}
section h2 {{ font-size: 13px; font-weight: 500; margin: 0 }}
.row {{ background: none; border: 0; align-self: end; font-size: 15px }}
.stat b {{ display: block; text-align: center; font-size: 40px; font-weight: 500; margin-top: 22px }}
svg {{ width: 100%; height: calc(100% - 52px); display: block }}
text {{ fill: #9fa7b3; font-size: 11px }}
.legend {{ font-size: 11px; color: #9fa7b3; white-space: nowrap }}
.legend i {{ display: inline-block; width: 12px; height: 3px; margin: 0 4px 3px 8px }}
"""


@dataclass(frozen=True, slots=True)
class Series:
    """``points``: Unix time and value, ascending; at least one."""

    name: str
    points: Sequence[tuple[float, float]]


def legend(pattern: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), pattern)


def shown(value: float, unit: str) -> str:
    """As Grafana writes it, roughly."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or not value else f"{1e3 * value:.3g} ms"
    end = {"reqps": " req/s", "cps": " c/s", "bytes": "B"}.get(unit, "")
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}{end}"
    return f"{value:.3g} {end}" if unit == "bytes" else f"{value:.3g}{end}"


def page(dashboard: Mapping[str, Any], found: Mapping[int, Sequence[Series]]) -> str:
    """``found``: series by the panel's id."""
    panels = "".join(_panel(panel, found.get(panel["id"], ())) for panel in dashboard["panels"])
    title = escape(dashboard["title"])
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><h1>{title}</h1><main>{panels}</main>"


def _panel(panel: Mapping[str, Any], series: Sequence[Series]) -> str:
    at = panel["gridPos"]
    place = f"grid-area:{at['y'] + 1}/{at['x'] + 1}/span {at['h']}/span {at['w']}"
    title = escape(panel["title"])
    if panel["type"] == "row":
        return f'<section class="row" style="{place}">{title}</section>'
    settings = panel["fieldConfig"]["defaults"]
    if panel["type"] == "stat":
        return f'<section class="stat" style="{place}"><h2>{title}</h2>{_stat(settings, series)}</section>'
    return f'<section style="{place}"><h2>{title}</h2>{_graph(settings, series)}</section>'


def _stat(settings: Mapping[str, Any], series: Sequence[Series]) -> str:
    if not series:
        return "<b>No data</b>"
    value = series[0].points[-1][1]
    steps = settings["thresholds"]["steps"]
    colour = [step["color"] for step in steps if step.get("value") is None or value >= step["value"]][-1]
    return f'<b style="color:{_NAMED[colour]}">{shown(value, settings["unit"])}</b>'


def _graph(settings: Mapping[str, Any], series: Sequence[Series]) -> str:
    drawn = _stacked(series) if settings["custom"].get("stacking") else list(series)
    if not drawn:
        return "<b>No data</b>"
    times = [at for each in drawn for at, _ in each.points]
    begin, span = min(times), max(max(times) - min(times), 1e-9)
    top = max(settings.get("max", 0.0), *(value for each in drawn for _, value in each.points)) or 1.0
    coloured = list(zip(drawn, cycle(COLOURS)))
    lines = "".join(_line(each, colour, begin, span, top) for each, colour in coloured)
    watermarks = "".join(_mark(top * share, top, settings["unit"]) for share in (0.0, 0.5, 1.0))
    named = "".join(f'<i style="background:{colour}"></i>{escape(each.name)}' for each, colour in coloured)
    box = f"0 0 {WIDTH} {HEIGHT + 12}"
    return f'<svg viewBox="{box}" preserveAspectRatio="none">{watermarks}{lines}</svg><div class="legend">{named}</div>'


def _stacked(series: Sequence[Series]) -> list[Series]:
    """Each upon those before it, at the times that any has."""
    below: dict[float, float] = {}
    found = []
    for each in series:
        for at, value in each.points:
            below[at] = below.get(at, 0.0) + value
        found.append(Series(each.name, [(at, below[at]) for at, _ in each.points]))
    return found


def _line(series: Series, colour: str, begin: float, span: float, top: float) -> str:
    points = " ".join(
        f"{LEFT + (WIDTH - LEFT) * (at - begin) / span:.1f},{6 + HEIGHT * (1 - value / top):.1f}"
        for at, value in series.points
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5" vector-effect="non-scaling-stroke"/>'


def _mark(value: float, top: float, unit: str) -> str:
    y = 6 + HEIGHT * (1 - value / top)
    line = f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#2c2f36"/>'
    return f'{line}<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown(value, unit)}</text>'


def range_series(answered: Sequence[Mapping[str, Any]], pattern: str) -> Iterator[Series]:
    """Of Prometheus' answer to a range query; series without a number are left out."""
    for each in answered:
        points = [(float(at), float(value)) for at, value in each["values"] if value not in ("NaN", "+Inf", "-Inf")]
        if points:
            yield Series(legend(pattern, each["metric"]) or "all", points)
