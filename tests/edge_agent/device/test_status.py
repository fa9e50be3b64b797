"""What `edge-agent status` shows of the metrics."""

from __future__ import annotations

from typing import Any

from edge_agent.device import status, status_view
from edge_agent.metrics import Metrics

REST: dict[str, Any] = {
    "state": "running",
    "stuck": None,
    "version": "1",
    "pid": 7,
    "uptime_s": 61.0,
    "newest_scene_age_s": None,
    "power": {"watts": None, "celsius": None, "mode": None, "throttled": False},
    "last_errors": [],
}


def shown(metrics: Metrics) -> str:
    return "\n".join(status_view.lines({**REST, **status.figures(metrics)}, 120))


def test_shadowing_is_shown_once_a_picture_was_chosen() -> None:
    metrics = Metrics()
    assert "shadowing" not in shown(metrics)
    metrics.shadows.labels("measured").inc(3)
    metrics.shadows.labels("over_budget").inc()
    metrics.shadow_bytes.inc(1500)
    assert "shadowing     3 pictures measured, 1,500 bytes; 1 over budget" in shown(metrics)
    assert status.figures(metrics)["shadows"]["measured"] == 3
