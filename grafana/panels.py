"""The few kinds of panels that the dashboards have, and how they look: a question each, answered by one or more queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

COLUMNS = 24
"""Of Grafana's grid."""

STAT_HEIGHT, GRAPH_HEIGHT = 4, 8

SELECTOR = 'job=~"$job",instance=~"$instance"'
"""Of every series of a router."""

RATE = "$__rate_interval"

Kind = Literal["line", "stack", "stat"]
Unit = Literal["s", "percentunit", "reqps", "short", "bytes", "cps", "bool_yes_no"]
"""Grafana's names; cps: counts a second."""

AnyPanel: TypeAlias = timeseries.Panel | stat.Panel


class Query(NamedTuple):
    """``legend``: of each of its series, with labels in double braces."""

    expr: str
    legend: str


class Limit(NamedTuple):
    """From ``value`` on, in the panel's unit, it is drawn in that colour."""

    value: float
    colour: Literal["green", "yellow", "orange", "red"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """``description``: what it means, and what to do when it looks wrong. ``limits``: ascending, above ``base``."""

    title: str
    description: str
    unit: Unit
    queries: Sequence[Query]
    kind: Kind = "line"
    width: int = 12
    base: Literal["green", "red", "yellow", "text"] = "text"
    limits: Sequence[Limit] = ()
    maximum: float | None = None

    def build(self, at: int) -> AnyPanel:
        """``at``: its number in the dashboard, from 1."""
        panel: AnyPanel = _stat() if self.kind == "stat" else _graph(self.kind)
        panel = (
            panel.id(at)
            .title(self.title)
            .description(self.description)
            .unit(self.unit)
            .datasource(_PROMETHEUS)
            .min(0)
            .span(self.width)
            .height(STAT_HEIGHT if self.kind == "stat" else GRAPH_HEIGHT)
            .thresholds(self._thresholds())
        )
        if self.maximum is not None:
            panel = panel.max(self.maximum)
        for letter, query in zip("ABCDEFGH", self.queries, strict=False):
            panel = panel.with_target(
                prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend).range()
            )
        return panel

    def _thresholds(self) -> dashboard.ThresholdsConfig:
        steps = [models.Threshold(value=None, color=self.base)]
        steps += [models.Threshold(value=limit.value, color=limit.colour) for limit in self.limits]
        return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A dashboard: rows of panels under a title each."""

    name: str
    title: str
    description: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    by_model: bool = False
    tags: Sequence[str] = field(default=("warmroute",))

    @property
    def panels(self) -> list[Panel]:
        return [panel for _, panels in self.rows for panel in panels]

    def build(self) -> models.Dashboard:
        board = (
            dashboard.Dashboard(self.title)
            .uid(f"warmroute-{self.name}")
            .description(self.description)
            .tags(list(self.tags))
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .link(
                dashboard.DashboardLink("Other dashboards")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags(["warmroute"])
                .include_vars(True)
                .keep_time(True)
            )
            .with_variable(
                dashboard.DatasourceVariable("datasource")
                .label("Data source")
                .type("prometheus")
                .description("Prometheus")
            )
            .with_variable(_variable("job", "Job", "label_values(warmroute_build_info, job)"))
            .with_variable(_variable("instance", "Router", 'label_values(warmroute_build_info{job=~"$job"}, instance)'))
        )
        if self.by_model:
            query = f"label_values(warmroute_requests_total{{{SELECTOR}}}, model)"
            board = board.with_variable(_variable("model", "Model", query))
        at = 0
        for title, panels in self.rows:
            board = board.with_row(dashboard.Row(title))
            for panel in panels:
                at += 1
                board = board.with_panel(panel.build(at))
        return board.build()


_PROMETHEUS = common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_PROMETHEUS)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _graph(kind: Kind) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(40 if kind == "stack" else 0)
        .show_points(common_models.VisibilityMode.NEVER)
        .thresholds_style(
            common.GraphThresholdsStyleConfig().mode(
                common_models.GraphThresholdsStyleMode.OFF
                if kind == "stack"
                else common_models.GraphThresholdsStyleMode.DASHED
            )
        )
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if kind == "stack":
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    return panel


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
