"""Asks a Prometheus every query of every dashboard, and says which return nothing: ``python -m grafana.ask URL``.

For whoever imported the dashboards and sees an empty panel: is nothing scraped, or has it not happened yet? Needs no package.
"""

from __future__ import annotations

import json
import math
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DASHBOARDS = Path(__file__).parent / "dashboards"
PATIENCE_S = 10.0
VARIABLES = {"$job": ".*", "$instance": ".*", "$model": ".*"}
RATED_OVER, SHOWN = "1m", "15m"


class Panel(NamedTuple):
    title: str
    queries: list[str]


def panels(dashboard: Path) -> list[Panel]:
    read = json.loads(dashboard.read_text("utf-8"))
    return [
        Panel(one["title"], [target["expr"] for target in one["targets"]]) for one in read["panels"] if "targets" in one
    ]


def filled_in(expr: str, rated_over: str = RATED_OVER, shown: str = SHOWN) -> str:
    """As Grafana asks with every variable at "All"; ``shown``: how long a time. Raises ValueError."""
    for name, value in {**VARIABLES, "$__rate_interval": rated_over, "$__range": shown}.items():
        expr = expr.replace(name, value)
    if "$" in expr:
        raise ValueError(f"a variable that is not known: {expr}")
    return expr


def has_data(prometheus: str, expr: str) -> bool:
    """Whether some series has a number now. Raises ValueError with what Prometheus says of the query, OSError."""
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': filled_in(expr)})}"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 (main takes http and https only)
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise ValueError(f"{expr}: {error.read(1000).decode('utf-8', 'replace')}") from None
    return any(not math.isnan(float(one["value"][1])) for one in found)


def report(prometheus: str) -> Iterator[str]:
    """A line a dashboard."""
    for dashboard in sorted(DASHBOARDS.glob("*.json")):
        shown = panels(dashboard)
        empty = [panel.title for panel in shown if not any(has_data(prometheus, expr) for expr in panel.queries)]
        told = f"; nothing yet in: {', '.join(empty)}" if empty else ""
        yield f"{dashboard.stem}: {len(shown) - len(empty)} of {len(shown)} panels have data{told}"


def main() -> int:
    if len(sys.argv) != 2 or not sys.argv[1].startswith(("http://", "https://")):
        print("usage: python -m grafana.ask http://PROMETHEUS:9090", file=sys.stderr)
        return 2
    try:
        for line in report(sys.argv[1].rstrip("/")):
            print(line, flush=True)
    except (OSError, ValueError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
