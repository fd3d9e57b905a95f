"""Dashboards as they are drawn for the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.dashboard_page import Series, legend, page, range_series, shown
from grafana.ask import DASHBOARDS


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.367, "percentunit", "36.7 %"),
        (0.0035, "s", "3.5 ms"),
        (2.5, "s", "2.5 s"),
        (1.0, "bool_yes_no", "Yes"),
        (18_700, "short", "18.7 k"),
        (2_000_000, "bytes", "2 MB"),
        (512, "bytes", "512 B"),
        (6740, "cps", "6.74 k c/s"),
    ],
)
def test_figures_are_written_with_their_units(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_a_legend_names_labels_and_leaves_out_those_that_are_not_there() -> None:
    assert legend("{{ worker }} {{cause}}{{none}}", {"worker": "w-1", "cause": "died"}) == "w-1 died"


def test_what_is_no_number_is_not_drawn() -> None:
    answered = [
        {"metric": {"state": "up"}, "values": [[1.0, "NaN"], [2.0, "4"]]},
        {"metric": {"state": "gone"}, "values": [[1.0, "NaN"]]},
    ]
    assert list(range_series(answered, "{{state}}")) == [Series("up", [(2.0, 4.0)])]


@pytest.mark.parametrize("path", sorted(DASHBOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_every_panel_has_its_place_with_data_and_without(path: Path) -> None:
    board = json.loads(path.read_text("utf-8"))
    hostile = [Series("<script>", [(1.0, 0.5), (2.0, 1.0)])]
    drawn = page(board, {panel["id"]: hostile for panel in board["panels"]})
    assert drawn.count("<section") == len(board["panels"])
    assert "<script>" not in drawn
    assert "No data" not in drawn
    figures = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert page(board, {}).count("No data") == len(figures)
