"""The tables of metrics keep Prometheus's rules, and the code and the page keep to the tables."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from benchmarks import metrics_page
from cloud_server.genai_metrics import GenAiMetrics
from cloud_server.metrics import Metrics as ServiceMetrics
from edge_agent.device_metrics import SPOOL_DROPS
from edge_agent.metrics import Metrics as AgentMetrics
from edge_agent.spool.entry import CAUSES
from protos.process.metric_kinds import OTHER
from protos.process.metric_rows import BASE_UNITS, DASHBOARDS, STATE, HistogramRow
from protos.process.metrics import MetricSet, Table

HALVES: list[type[MetricSet]] = [ServiceMetrics, AgentMetrics]
TABLES: list[type[Table]] = [*HALVES, GenAiMetrics]
FOREIGN_UNITS = re.compile(
    "_(ms|us|ns|millis|milliseconds|minutes|hours|kb|mb|kib|mib|percent)(_|$)"
)


@pytest.mark.parametrize("table", TABLES)
def test_names_and_units_follow_prometheus(table: type[Table]) -> None:
    for row in table.rows():
        assert re.fullmatch("[a-z][a-z0-9_]*", row.name)
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
        stem = "_" + row.name.removesuffix("_total")
        if row.base_unit:
            assert stem.endswith("_" + row.base_unit)
        else:
            assert not stem.endswith(tuple("_" + unit for unit in BASE_UNITS))
        assert not FOREIGN_UNITS.search(row.name)
        assert row.unit, row.name
        assert row.unit != STATE or row.kind == "gauge", row.name
        assert row.meaning and "\n" not in row.meaning and not row.meaning.endswith(".")


@pytest.mark.parametrize("table", TABLES)
def test_every_metric_has_a_dashboard_and_bounded_labels(table: type[Table]) -> None:
    for row in table.rows():
        assert row.dashboards and set(row.dashboards) <= set(DASHBOARDS), row.name
        names = [label.name for label in row.labels]
        assert len(set(names)) == len(names)
        assert not set(names) & {"le", "quantile", "instance", "job"}
        for label in row.labels:
            assert bool(label.values) != bool(label.bound), label
            assert len(set(label.values)) == len(label.values)
            assert 0 < label.number <= 256 or label.bound.startswith("--"), "a setting bounds it"
        assert row.most_series <= (64 if row.kind == "histogram" else 20_480), row.name


@pytest.mark.parametrize("table", TABLES)
def test_buckets_are_sensible(table: type[Table]) -> None:
    for row in table.rows():
        if not isinstance(row, HistogramRow):
            assert not row.buckets
            continue
        assert 5 <= len(row.buckets) <= 20, row.name
        assert list(row.buckets) == sorted(set(row.buckets))
        assert all(math.isfinite(bound) and bound > 0 for bound in row.buckets)
        steps = [b / a for a, b in zip(row.buckets, row.buckets[1:], strict=False)]
        assert max(steps) <= 10, row.name  # a quantile is off by a decade at most


@pytest.mark.parametrize("table", TABLES)
def test_the_registry_holds_the_table_and_nothing_else(table: type[Table]) -> None:
    metrics, rows = table(), table.rows()
    shown = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in metrics.registry.collect()
    }
    assert sorted(shown) == sorted(table.prefix + row.name for row in rows)
    for row in rows:
        family = shown[table.prefix + row.name]
        assert (family.type, family.documentation) == (row.kind, row.meaning)
        assert family.unit == row.base_unit


@pytest.mark.parametrize("table", TABLES)
def test_openmetrics_can_be_parsed(table: type[Table]) -> None:
    metrics = table()
    text = generate_latest(metrics.registry).decode()
    assert len(list(text_string_to_metric_families(text))) == len(table.rows())


@pytest.mark.parametrize("half", HALVES)
def test_the_code_counts_with_the_labels_of_the_table(half: type[MetricSet]) -> None:
    rows = {row.attribute: row for row in half.rows()}
    used = set()
    for path, node in _nodes(half):
        if isinstance(node, ast.Attribute) and node.attr in rows and _is_metrics(node.value, path):
            used.add(node.attr)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        counted = node.func.value
        if node.func.attr != "labels" or not isinstance(counted, ast.Attribute):
            continue
        if counted.attr not in rows:
            continue
        row, where = rows[counted.attr], f"{path}:{node.lineno}"
        if any(isinstance(one, ast.Starred) for one in node.args):
            continue
        assert len(node.args) == len(row.labels), where
        for one, label in zip(node.args, row.labels, strict=True):
            if isinstance(one, ast.Constant) and label.values:
                assert one.value in label.values, where
    assert not set(rows) - used, "nothing counts them"


def test_labels_that_repeat_a_list_of_the_code_repeat_all_of_it() -> None:
    assert tuple(CAUSES) == SPOOL_DROPS


@pytest.mark.parametrize("table", TABLES)
def test_no_metric_grows_beyond_its_bound(table: type[Table]) -> None:
    metrics = table()
    for row in table.rows():
        metric = metrics.__dict__[row.attribute]
        if row.kind == "histogram" or not hasattr(metric, "labels"):
            continue
        if not row.labels or row.most_series > 2_000:
            continue
        for number in range(row.most_series + 2):
            metric.labels(*[f"stranger-{number}"] * len(row.labels))
        series = [one for family in metric.collect() for one in family.samples]
        assert OTHER in {one.labels[label.name] for one in series for label in row.labels}
        assert len(series) <= row.most_series + len(row.labels) + 1, row.name


def test_the_page_is_what_the_tables_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metrics_page.main(["--check"]) == 0
    page = tmp_path / "metrics.md"
    assert metrics_page.main(["--page", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert all(f"| `{row.name}` |" in text for table in TABLES for row in table.rows())
    page.write_text(text.replace("`answers_total`", "`replies_total`"), encoding="utf-8")
    assert metrics_page.main(["--check", "--page", str(page)]) == 1
    assert "python -m benchmarks.metrics_page" in capsys.readouterr().err


def _nodes(half: type[MetricSet]) -> Iterator[tuple[Path, ast.AST]]:
    root = Path(__file__).parents[1]
    package = root / half.__module__.partition(".")[0]
    for path in (root / "protos" / "process" / "metrics.py", *sorted(package.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path, node


def _is_metrics(node: ast.expr, path: Path) -> bool:
    """Whether an expression names a set of metrics; in their own modules, `self`."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("metrics", "_metrics") or (name == "self" and path.name == "metrics.py")
