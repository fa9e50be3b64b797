"""All dashboards, in the order of `protos.process.metric_rows.DASHBOARDS`."""

from __future__ import annotations

from benchmarks.dashboards import engine, fidelity, fleet, latency, link, slo
from benchmarks.dashboards.panel import Dashboard

ALL: list[Dashboard] = [
    fleet.BOARD,
    link.BOARD,
    latency.BOARD,
    fidelity.BOARD,
    engine.BOARD,
    slo.BOARD,
]
