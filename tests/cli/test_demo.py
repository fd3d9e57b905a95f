"""The demo on a small trace, with a router that is a list of workers taken in turn."""

import io
import json
import runpy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from rich.console import Console

from router.cli.demo import DEMO_FLEET, DemoSettings, compare, demo
from router.replay import ReplayError

BUNDLED = files("router.cli") / "demo-trace.jsonl"
SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "make_demo_trace.py"))
ROWS: list[dict[str, Any]] = SCRIPT["make_rows"]()


@asynccontextmanager
async def start_router(policy: str, workers: Sequence[str]) -> AsyncIterator[str]:
    """`one` sends everything to the first worker, any other policy takes turns."""
    turns = cycle(workers[:1] if policy == "one" else workers)

    async with ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()
            async with session.request(request.method, next(turns) + request.path, data=body or None) as answer:
                return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)

        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", forward)
        async with TestServer(app) as server:
            yield str(server.make_url("")).rstrip("/")


async def test_demo_compares_policies_on_fleets_that_start_cold(tmp_path: Path) -> None:
    out = io.StringIO()
    rows = [{"timestamp": 0, "input_length": 4096, "output_length": 2, "hash_ids": list(range(8))}] * 4
    trace = tmp_path / "t.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DemoSettings(("turns", "one"), replace(DEMO_FLEET, time_scale=100), trace)
    reports = await demo(settings, start_router, Console(file=out, width=160))
    assert list(reports) == ["turns", "one"]
    assert all(report.errors == {} and report.answered == 4 for report in reports.values())
    assert reports["turns"].hit_ratio == 0
    assert reports["turns"].imbalance == 1
    assert reports["one"].imbalance == 4
    assert "cache hits" in out.getvalue()


async def test_demo_without_its_trace_says_so(tmp_path: Path) -> None:
    settings = DemoSettings(trace=tmp_path / "none.jsonl")
    with pytest.raises(ReplayError, match="cannot be read"):
        await demo(settings, start_router, Console(file=io.StringIO()))


async def test_comparison_holds_a_column_for_each_policy(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 600, "output_length": 1}\n')
    settings = DemoSettings(("turns",), replace(DEMO_FLEET, workers=1, time_scale=100), trace)
    reports = await demo(settings, start_router, Console(file=io.StringIO()))
    table = compare({"a": reports["turns"], "b": reports["turns"]})
    assert [column.header for column in table.columns] == ["", "a", "b", "ratio"]
    assert next(iter(table.columns[-1].cells)) == "1.00 x"


def test_bundled_trace_is_what_its_script_makes() -> None:
    lines = BUNDLED.read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS


def test_bundled_trace_is_small_and_short() -> None:
    assert len(BUNDLED.read_bytes()) <= 60_000
    assert ROWS[-1]["timestamp"] <= 20_000 * DEMO_FLEET.time_scale
    assert all(row["hash_ids"][0] == 0 for row in ROWS)
