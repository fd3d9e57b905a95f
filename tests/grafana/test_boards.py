"""Dashboards are what their modules say, explain themselves, and ask for metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest

from docs.generate import DOCS
from grafana.alerts import ALERTS
from grafana.boards.latency import GOOD_S
from grafana.generate import BOARDS, files, main
from grafana.panels import COLUMNS, Board, Panel
from grafana.shares import RECORDED
from router.proxy.metrics import TTFT_BUCKETS

PANELS = [pytest.param(panel, id=f"{board.name}-{panel.title}") for board in BOARDS for panel in board.panels]

BOUND = "a bound that is rarely near; docs/metrics.md"
DETAIL = "for a question at hand; docs/metrics.md"
SHOWN_NOWHERE = {
    "warmroute_remembered_decisions": BOUND,
    "warmroute_max_remembered_sessions": BOUND,
    "warmroute_max_remembered_decisions": BOUND,
    "warmroute_max_keys": BOUND,
    "warmroute_audit_waiting_lines": BOUND,
    "warmroute_cached_sessions": DETAIL,
    "warmroute_known_token_counts": BOUND,
    "warmroute_live_turns": DETAIL,
    "warmroute_max_known_token_counts": BOUND,
    "warmroute_max_session_bytes": BOUND,
    "warmroute_max_session_items": BOUND,
    "warmroute_max_tenant_sessions": BOUND,
    "warmroute_open_worker_connections": DETAIL,
    "warmroute_resent_messages_total": DETAIL,
    "warmroute_session_bytes": "as session_items, which is shown",
    "warmroute_tenant_shortened_total": DETAIL,
    "warmroute_token_count_seconds": DETAIL,
    "warmroute_worker_reads_waiting": DETAIL,
}


def test_what_lies_in_the_folders_is_what_the_modules_say() -> None:
    assert main(["--check"]) == 0


def test_dashboards_can_be_told_apart() -> None:
    boards = [json.loads(text) for path, text in files() if path.suffix == ".json"]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(BOARDS)
    for board in boards:
        ids = [panel["id"] for panel in board["panels"] if panel["type"] != "row"]
        assert len(ids) == len(set(ids))
        assert {variable["name"] for variable in board["templating"]["list"]} >= {"datasource", "job", "instance"}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board.name))
def test_a_row_fills_its_lines(board: Board) -> None:
    for title, panels in board.rows:
        assert sum(panel.width for panel in panels) % (COLUMNS // 2) == 0, title


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_means_and_in_which_unit(panel: Panel) -> None:
    assert panel.unit
    assert panel.description.endswith(".")
    assert panel.title != panel.description
    values = [limit.value for limit in panel.limits]
    assert values == sorted(values)


def metrics_in(exprs: Iterable[str]) -> set[str]:
    return {name for expr in exprs for name in re.findall(r"warmroute_[a-z_]+", expr)}


def exported() -> dict[str, set[str]]:
    """By metric of the reference, which is made from what a router exports, the names of its series."""
    rows = re.findall(r"(?m)^\| `(warmroute_\w+)` \| (\w+) \|", (DOCS / "metrics.md").read_text())
    return {
        name: {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
        for name, kind in rows
    }


def asked() -> list[str]:
    by_boards = [query.expr for board in BOARDS for panel in board.panels for query in panel.queries]
    return [*by_boards, *RECORDED.values(), *(alert.expr for alert in ALERTS)]


def asked_for() -> set[str]:
    return metrics_in(asked())


def labels_of(series: str) -> set[str]:
    """Of a series of the reference, and those that Prometheus gives it."""
    name = re.sub("_(bucket|count|sum)$", "", series)
    (shown,) = re.findall(rf"(?m)^\| `(?:{series}|{name})` \| \w+ \| ([^|]*) \|", (DOCS / "metrics.md").read_text())
    return {"namespace", "job", "instance", *(["le"] if series.endswith("_bucket") else []), *re.findall(r"\w+", shown)}


@pytest.mark.parametrize("expr", sorted(set(asked())))
def test_every_label_that_is_asked_for_is_exported(expr: str) -> None:
    for series, matchers in re.findall(r"(warmroute_\w+)\{([^}]*)\}", expr):
        assert set(re.findall(r'(\w+)=~?"', matchers)) <= labels_of(series), series
    known = {label for series in metrics_in([expr]) for label in labels_of(series)}
    recorded = RECORDED["warmroute:worker_requests:rate15m"] if "warmroute:" in expr else ""
    known |= {label for series in metrics_in([recorded]) for label in labels_of(series)}
    for labels in re.findall(r"(?:by|on|ignoring) \(([^)]*)\)", expr):
        assert set(re.findall(r"\w+", labels)) <= known


def test_every_metric_that_is_asked_for_is_exported() -> None:
    assert asked_for() <= {series for names in exported().values() for series in names}


def test_every_metric_is_shown_or_has_a_reason_not_to_be() -> None:
    asked = asked_for()
    unseen = {name for name, names in exported().items() if not names & asked}
    assert unseen == set(SHOWN_NOWHERE)


def test_the_objective_is_a_bucket() -> None:
    assert float(GOOD_S) in TTFT_BUCKETS
