"""Draws docs/images/dashboard-*.png: every query of every dashboard, asked of a Prometheus that scraped a router in a bad week.

    python -m docs.dashboard_pictures

Takes a minute; prometheus, redis-server and chromium have to be there. The traffic is that of tests/grafana.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from docs.dashboard_page import Series, page, range_series
from docs.screenshots import IMAGES, chromium
from grafana.ask import DASHBOARDS, filled_in
from tests.grafana.test_queries import RATED_OVER, SHOWN, Run, scrape

STEP_S = 0.5


def ask(run: Run, dashboard: dict[str, Any]) -> dict[int, list[Series]]:
    """By the panel's id."""
    found: dict[int, list[Series]] = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            when = {"start": run.began_at, "end": run.ended_at, "step": STEP_S}
            answered = run.prometheus.ask("query_range", query=filled_in(target["expr"], RATED_OVER, SHOWN), **when)[
                "result"
            ]
            found.setdefault(panel["id"], []).extend(range_series(answered, target["legendFormat"]))
    return found


async def draw(pages: dict[str, str]) -> None:
    async with chromium() as browser:
        view = await browser.new_page(viewport={"width": 1432, "height": 800})
        for name, html in pages.items():
            await view.set_content(html)
            await view.screenshot(path=IMAGES / f"dashboard-{name}.png", full_page=True)


def main() -> int:
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as directory:
        context, run = asyncio.run(scrape(Path(directory)))
        try:
            boards = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}
            pages = {name: page(board, ask(run, board)) for name, board in boards.items()}
        finally:
            context.__exit__(None, None, None)
    asyncio.run(draw(pages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
