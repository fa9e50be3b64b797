"""What a panel is, how it becomes Grafana's JSON, and the queries that panels are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import common, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import prometheus as queries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

SERVICE, AGENT = "neural_bridge_cloud_", "neural_bridge_edge_"
DATA_SOURCE = "datasource"
"""Variable that holds the data source."""
_SOURCE = DataSourceRef(type_val="prometheus", uid=f"${{{DATA_SOURCE}}}")
_WIDTH = 24


@dataclass(frozen=True)
class Panel:
    """A panel.

    Attributes:
        title: what it shows.
        unit: Grafana's name of the unit.
        normal: what normal looks like, and what it means if it isn't; shown as its description.
        shows: legend and query, each a line.
        of_total: lines are stacked, because they are parts of a total.
        number: the newest values as numbers instead of lines.
        span: width, of 24.
    """

    title: str
    unit: str
    normal: str
    shows: dict[str, str]
    of_total: bool = False
    number: bool = False
    span: int = 8

    def build(self) -> timeseries.Panel | stat.Panel:
        """Grafana's panel."""
        made: timeseries.Panel | stat.Panel
        if self.number:
            made = (
                stat.Panel()
                .height(4)
                .color_mode(BigValueColorMode.NONE)
                .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            )
        else:
            made = (
                timeseries.Panel()
                .height(8)
                .fill_opacity(30 if self.of_total else 0)
                .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
                .legend(
                    common.VizLegendOptions()
                    .show_legend(True)
                    .display_mode(LegendDisplayMode.LIST)
                    .placement(LegendPlacement.BOTTOM)
                )
            )
            if self.of_total:
                made.stacking(common.StackingConfig().mode("normal"))  # type: ignore[arg-type]
        made.title(self.title).unit(self.unit).description(self.normal)
        made.datasource(_SOURCE).span(self.span)
        for number, (legend, expr) in enumerate(self.shows.items()):
            made.with_target(
                queries.Dataquery()
                .expr(expr)
                .legend_format(legend)
                .ref_id(chr(ord("A") + number))
                .datasource(_SOURCE)
            )
        return made


@dataclass(frozen=True)
class Dashboard:
    """A dashboard.

    Attributes:
        title: as in `protos.process.metric_rows.DASHBOARDS`.
        about: what one sees on it.
        rows: panels by the title of their row.
        by_name: panels of single devices, which the service shows with `device_series`; a row of
            their own, collapsed.
        agents: panels of agents that Prometheus scrapes itself; another such row.
    """

    title: str
    about: str
    rows: dict[str, list[Panel]]
    by_name: list[Panel] = field(default_factory=list)
    agents: list[Panel] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its file and in its address."""
        return self.title.lower()

    @property
    def all_rows(self) -> dict[str, list[Panel]]:
        """Panels by the title of their row, also those that are collapsed."""
        found = dict(self.rows)
        if self.by_name:
            found["Devices by name (the service's --device-series)"] = self.by_name
        if self.agents:
            found["Agents that Prometheus scrapes itself"] = self.agents
        return found

    @property
    def panels(self) -> list[Panel]:
        """All panels."""
        return [panel for row in self.all_rows.values() for panel in row]

    def to_json(self) -> str:
        """As Grafana reads it."""
        made = (
            grafana.Dashboard(f"Neural Bridge: {self.title}")
            .uid(f"neural-bridge-{self.name}")
            .description(self.about)
            .tags(["neural-bridge"])
            .time("now-6h", "now")
            .refresh("30s")
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .with_variable(
                grafana.DatasourceVariable(DATA_SOURCE).label("Data source").type("prometheus")
            )
            .link(
                grafana.DashboardLink("Neural Bridge")
                .type("dashboards")  # type: ignore[arg-type]
                .tags(["neural-bridge"])
                .include_vars(True)
                .keep_time(True)
            )
        )
        for title, panels in self.all_rows.items():
            row = grafana.Row(title)
            if title in self.rows:
                made.with_row(row)
                for panel in panels:
                    made.with_panel(panel.build())
            else:
                made.with_row(_collapsed(row, panels))
        return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _collapsed(row: grafana.Row, panels: list[Panel]) -> grafana.Row:
    row.collapsed(True)
    for panel in panels:
        row.with_panel(panel.build())
    return row


def metrics_of(expr: str) -> set[str]:
    """The names of our metrics that a query reads, histograms without the end of their name."""
    found = re.findall(r"neural_bridge_(?:cloud|edge)_\w+|neural_bridge:\w+:\w+", expr)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


# ------------------------------------------------------------------------------ parts of queries


def rate(name: str, by: str = "", half: str = SERVICE) -> str:
    """How many a second."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({half}{name}[$__rate_interval]))"


def total(name: str, by: str = "", half: str = SERVICE, how: str = "sum") -> str:
    """A gauge of all front ends together, or of agents."""
    grouped = f" by ({by})" if by else ""
    return f"{how}{grouped} ({half}{name})"


def quantile(share: float, name: str, by: str = "", half: str = SERVICE) -> str:
    """A quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({share:g}, "
        f"sum by ({labels}) (rate({half}{name}_bucket[$__rate_interval])))"
    )


def quantiles(name: str, half: str = SERVICE) -> dict[str, str]:
    """Median, and what nineteen of twenty stay below."""
    return {
        "median": quantile(0.5, name, half=half),
        "95th percentile": quantile(0.95, name, half=half),
    }


def mean(name: str, by: str = "", half: str = SERVICE) -> str:
    """The mean of a histogram's observations."""
    return f"{rate(name + '_sum', by, half)} / {rate(name + '_count', by, half)}"


def worst(name: str, by: str = "instance", half: str = AGENT) -> str:
    """The highest of a gauge."""
    return f"max by ({by}) ({half}{name})"


def in_an_hour(name: str, by: str = "", half: str = AGENT) -> str:
    """How many in the last hour."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (increase({half}{name}[1h]))"


def or_none(expr: str) -> str:
    """0 where the service has no series of something that never happened."""
    return f"({expr}) or vector(0)"
