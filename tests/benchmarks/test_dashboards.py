"""Grafana's dashboards say what the code says, and show every metric where its table says so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import docs
from benchmarks.dashboards import __main__ as command
from benchmarks.dashboards import boards
from benchmarks.dashboards.panel import Dashboard, metrics_of
from cloud_server.metrics import Metrics as ServiceMetrics
from edge_agent.metrics import Metrics as AgentMetrics
from protos.process.metric_rows import DASHBOARDS
from tests.deploy.test_monitoring import rules

BOARD = pytest.mark.parametrize("board", boards.ALL, ids=lambda board: board.name)
ROWS = {
    half.prefix + row.name: row for half in (ServiceMetrics, AgentMetrics) for row in half.rows()
}


def panels_of(made: dict[str, Any]) -> list[dict[str, Any]]:
    """Every panel of a dashboard's JSON, also those in collapsed rows."""
    found = []
    for one in made["panels"]:
        found += one["panels"] if one["type"] == "row" else [one]
    return found


def read(board: Dashboard) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((command.FOLDER / f"{board.name}.json").read_text())
    return made


def test_the_files_are_what_the_code_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--check"]) == 0
    page = tmp_path / "dashboards.md"
    page.write_text(f"before\n{docs.begin('dashboards')}\n{docs.END}\nafter\n")
    at = ["--folder", str(tmp_path / "new"), "--page", str(page)]
    assert command.main([*at, "--check"]) == 1
    assert command.main(at) == 0
    assert command.main([*at, "--check"]) == 0
    assert all(panel.title in page.read_text() for one in boards.ALL for panel in one.panels)
    (tmp_path / "new" / "old.json").write_text("{}")
    stale = tmp_path / "new" / "slo.json"
    stale.write_text(stale.read_text().replace("seconds", "minutes"))
    assert command.main([*at, "--check"]) == 1
    assert "old.json, slo.json: run" in capsys.readouterr().err
    assert command.main(at) == 0 and command.main([*at, "--check"]) == 0


def test_there_is_a_dashboard_for_each_name_of_the_tables() -> None:
    assert tuple(board.title for board in boards.ALL) == DASHBOARDS


@BOARD
def test_each_panel_has_unit_description_and_queries(board: Dashboard) -> None:
    found = panels_of(read(board))
    assert len(found) == len(board.panels) > 5
    for panel in found:
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["expr"] and target["legendFormat"], panel["title"]


@BOARD
def test_the_data_source_is_a_variable(board: Dashboard) -> None:
    made = read(board)
    (variable,) = made["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    sources = re.findall(r'"uid": "([^"]*)"', json.dumps(made["panels"]))
    assert sources and set(sources) == {f"${{{variable['name']}}}"}


@BOARD
def test_a_dashboard_shows_the_metrics_that_say_so(board: Dashboard) -> None:
    shown = {name for panel in board.panels for expr in panel.shows.values()
             for name in metrics_of(expr)}  # fmt: skip
    wanted = {name for name, row in ROWS.items() if board.title in row.dashboards}
    assert not wanted - shown, f"not on {board.title}: {sorted(wanted - shown)}"
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    unknown = {name for name in shown if name not in ROWS and name not in recorded}
    assert not unknown, f"no such metric: {sorted(unknown)}"


@BOARD
def test_queries_group_by_labels_that_their_metrics_have(board: Dashboard) -> None:
    for panel in board.panels:
        for legend, expr in panel.shows.items():
            named = set(re.findall(r"{{(\w+)}}", legend))
            grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expr))))
            assert named <= grouped, f"{panel.title}: {legend}"
            labels = {"instance", "le", "slo", "window"} | {
                label.name
                for name in metrics_of(expr)
                if name in ROWS
                for label in ROWS[name].labels
            }
            assert grouped <= labels, f"{panel.title}: {expr}"


@BOARD
def test_titles_and_legends_are_not_twice(board: Dashboard) -> None:
    for of in [*board.rows.values(), board.by_name, board.agents]:
        titles = [panel.title for panel in of]
        assert len(set(titles)) == len(titles), titles
