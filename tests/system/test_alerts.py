"""Something breaks in a real service; Prometheus sees it, Alertmanager tells the right receiver.

Rules and routing are those of deploy/monitoring, with every duration divided by one number.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from benchmarks.dashboards.recorded import LONG_S, Watched, figures, record, watched
from benchmarks.dashboards.stack import faster, missing
from tests.deploy.test_monitoring import RULES, read

WITH_BOTH = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


def test_durations_of_rules_are_divided_and_nothing_else() -> None:
    text = 'for: 15m\ninterval: 1m\nexpr: sum(rate(x_rate5m{window="5m"}[5m])) > 5 # 1h'
    assert faster(text, 20) == (
        "for: 45s\ninterval: 3s\nexpr: sum(rate(x_rate5m{window=\"5m\"}[15s])) > 5 # 1h"
    )  # fmt: skip
    for path in RULES:
        shipped, made = read(path), yaml.safe_load(faster(path.read_text(), 20))
        assert _without_durations(made) == _without_durations(shipped)
        assert made != shipped


def _without_durations(of: Any) -> Any:
    if isinstance(of, dict):
        return {
            name: _without_durations(value)
            for name, value in of.items()
            if name not in ("for", "interval")
        }
    if isinstance(of, list):
        return [_without_durations(one) for one in of]
    return _no_windows(of) if isinstance(of, str) else of


def _no_windows(text: str) -> str:
    return re.sub(r"\[\d+[smhd]\]", "[]", text)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("scene")) as it:
        yield it


@pytest.mark.slow
@WITH_BOTH
@pytest.mark.timeout(3600)
def test_no_panel_is_empty_while_a_service_runs(scene: Watched) -> None:
    found = record(scene, print)
    empty = [
        f"{panel}: {legend}"
        for panel, values in found.items()
        for legend, (shown, _) in values.items()
        if not shown
    ]
    assert len(found) > 80 and not empty, "\n".join(empty)
    for row in figures(found):
        print(f"{row['name']}: {row['value']} {row['target']}")


@pytest.mark.slow
@WITH_BOTH
@pytest.mark.timeout(3600)
def test_what_breaks_is_told_and_what_is_well_is_not(scene: Watched) -> None:
    c, it = "neural_bridge_cloud_", scene
    told = it.stack.told
    with it.simulated():
        it.stack.until(f"{c}attending == 1 and on () {c}known_devices == 1", LONG_S)
        it.stack.until('absent(ALERTS{alertstate="firing"})', LONG_S)
        told.alerts.clear()  # what the start of a service looks like
        it.stack.until(f"count_over_time({c}engine_up[30s]) >= 9", LONG_S)
        calm = [one["labels"]["alertname"] for one in told.alerts if one["status"] == "firing"]
        assert not calm

        started_s, restarts = time.monotonic(), it.site.metric("engine_restarts_total")
        for killed in range(1, 5):
            it.kill_engine()
            it.stack.until(f"{c}engine_restarts_total >= {restarts + killed}", LONG_S)
        page = told.wait("EngineRestarting", "firing", LONG_S)
        assert page["receiver"] == "page"
        assert page["annotations"]["runbook_url"] == "docs/dashboards.md#engine-restarting"
        print(f"EngineRestarting was told {page['at'] - started_s:.1f} s after the first kill")
        told.wait("EngineRestarting", "resolved", LONG_S)
    started_s = time.monotonic()
    ticket = told.wait("DeviceSilent", "firing", LONG_S)
    assert ticket["receiver"] == "ticket"
    assert ticket["annotations"]["summary"] == "Silent devices: 1"
    print(f"DeviceSilent was told {ticket['at'] - started_s:.1f} s after the device had gone")
    with it.simulated():
        told.wait("DeviceSilent", "resolved", LONG_S)
