"""Rules and routing of deploy/monitoring: checked by Prometheus's and Alertmanager's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_server.metrics import Metrics as ServiceMetrics
from edge_agent.metrics import Metrics as AgentMetrics
from protos.process.metric_rows import Row

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PROMETHEUS = MONITORING / "prometheus"
ROUTING = MONITORING / "alertmanager" / "alertmanager.yml"
RULES = sorted((PROMETHEUS / "rules").glob("*.yaml"))
CASES = sorted((PROMETHEUS / "tests").glob("*.yaml"))
PROMTOOL, AMTOOL = shutil.which("promtool"), shutil.which("amtool")
WITH_PROMTOOL = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool: make prometheus (Debian: apt-get install prometheus)"
)
WITH_AMTOOL = pytest.mark.skipif(
    AMTOOL is None,
    reason="no amtool: make prometheus (Debian: apt-get install prometheus-alertmanager)",
)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in read(path)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def objectives() -> list[str]:
    return [
        rule["labels"]["slo"]
        for rule in rules()
        if rule.get("record") == "neural_bridge:slo_target:ratio"
    ]


def names_of(row: Row[Any]) -> list[str]:
    """The names of a metric's series, without the prefix."""
    if row.kind == "histogram":
        return [f"{row.name}_{end}" for end in ("bucket", "sum", "count")]
    return [row.name]


def told(*command: str | Path | None) -> str:
    """Run a tool that must end with 0."""
    ran = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.strip()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@WITH_PROMTOOL
def test_rules_are_ones_that_prometheus_takes() -> None:
    told(PROMTOOL, "check", "rules", *RULES)
    told(PROMTOOL, "check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


@WITH_PROMTOOL
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_each_alert_fires_when_it_must_and_only_then(cases: Path) -> None:
    told(PROMTOOL, "test", "rules", cases)


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    firing, calm = set(), set()
    for path in CASES:
        for case in read(path)["tests"]:
            assert case["input_series"], case["name"]
            for one in case["alert_rule_test"]:
                (firing if one["exp_alerts"] else calm).add(one["alertname"])
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    assert set(names) == firing == calm


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    said = rule["annotations"]
    assert said["summary"].strip() and said["description"].strip()
    page, _, anchor = said["runbook_url"].partition("#")
    held = anchors(ROOT / page)
    for slo in objectives() if "$labels.slo" in anchor else [""]:
        place = re.sub(r"{{\s*\$labels\.slo\s*}}", slo, anchor)
        assert place in held, f"{page} has no heading for #{place}"


@WITH_AMTOOL
def test_alertmanager_takes_its_configuration() -> None:
    told(AMTOOL, "check-config", ROUTING)


@WITH_AMTOOL
@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_reaches_the_receiver_of_its_severity(rule: dict[str, Any]) -> None:
    labels = [f"{name}={value}" for name, value in rule["labels"].items()]
    config = f"--config.file={ROUTING}"
    assert told(AMTOOL, "config", "routes", "test", config, f"alertname={rule['alert']}", *labels) \
        == rule["labels"]["severity"]  # fmt: skip


def test_every_metric_that_a_rule_reads_exists() -> None:
    held = {
        half.prefix + name
        for half in (ServiceMetrics, AgentMetrics)
        for row in half.rows()
        for name in names_of(row)
    }
    for rule in rules():
        for name in re.findall(r"neural_bridge_(?:cloud|edge)_\w+", rule["expr"]):
            assert name in held, f"{rule.get('alert') or rule['record']} reads {name}"


def test_each_label_value_that_a_rule_asks_for_exists() -> None:
    rows = {
        half.prefix + row.name: row
        for half in (ServiceMetrics, AgentMetrics)
        for row in half.rows()
    }
    asked = 0
    for rule in rules():
        for name, inner in re.findall(
            r"(neural_bridge_(?:cloud|edge)_\w+)\{([^}]*)\}", rule["expr"]
        ):
            row = rows.get(name) or rows[name.removesuffix("_bucket")]
            for label, pattern in re.findall(r'(\w+)=~?"([^"]*)"', inner):
                for value in pattern.split("|"):
                    asked += 1
                    if label == "le":
                        assert float(value) in row.buckets, rule
                    else:
                        assert value in {one.name: one.values for one in row.labels}[label], rule
    assert asked > 20


def test_an_alert_that_silences_others_exists() -> None:
    names = {rule["alert"] for rule in alerts()}
    for rule in read(ROUTING)["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            label, pattern = re.fullmatch(r'(\w+)=~?"(.*)"', matcher).groups()  # type: ignore[union-attr]
            known = names if label == "alertname" else objectives()
            assert any(re.fullmatch(pattern, name) for name in known), matcher
