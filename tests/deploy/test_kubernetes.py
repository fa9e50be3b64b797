"""The chart: rendered by Helm, held against Kubernetes' schemas, and what a cluster relies on."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError, chart

from cloud_server import settings
from tests.checkout import ROOT

CHART = ROOT / "deploy" / "kubernetes" / "neural-bridge"
RULES = ROOT / "deploy" / "monitoring" / "prometheus" / "rules"
LEAST: dict[str, Any] = {
    "authority": {"existingSecret": "authority"},
    "database": {"url": "postgresql://bridge@db/bridge", "existingSecret": "db"},
    "models": {"existingClaim": "models", "bundles": ["bundles/edge-a-cloud"]},
}
"""Values without which nothing is installed."""
ALL: dict[str, Any] = LEAST | {
    "names": ["bridge.example"],
    "settings": {"scene_memory_bytes": 10**10, "engines": 2, "canary_agreement": 0.75},
    "autoscaling": {"enabled": True, "queueAgeSeconds": 0.25},
    "metrics": {
        "serviceMonitor": {"enabled": True, "existingSecret": "scraper"},
        "prometheusRule": {"enabled": True},
    },
    "traces": {"endpoint": "http://collector:4318"},
    "nodeSelector": {"gpu": "yes"},
    "podAnnotations": {"a": "b"},
}
"""Values with which everything is."""


class _Twice(yaml.SafeLoader):
    """Refuses a key that stands twice in a map, as the API server does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]  # type: ignore[no-untyped-call]
        assert len(keys) == len(set(keys)), f"a key twice in {keys}"
        return super().construct_mapping(node, deep)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Chart]:
    with Chart.load(CHART) as found:
        yield found


def rendered(loaded: Chart, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The documents by kind; a second one of a kind by kind and name."""
    found: dict[str, dict[str, Any]] = {}
    for name, text in loaded.render(values, name="east", namespace="bridge").items():
        for each in yaml.load_all(text, _Twice) if not name.endswith(".txt") else ():
            if each is not None:
                kind = each["kind"]
                found[f"{kind} {each['metadata']['name']}" if kind in found else kind] = each
    return found


@pytest.fixture(scope="module")
def whole(loaded: Chart) -> dict[str, dict[str, Any]]:
    return rendered(loaded, ALL)


def pod(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = documents["Deployment"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("version", ["1.28", "1.32", "1.36"])
@pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])
def test_kubernetes_accepts_every_document(
    loaded: Chart, values: dict[str, Any], version: str
) -> None:
    for document in rendered(loaded, values).values():
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_would_be_found(whole: dict[str, dict[str, Any]]) -> None:
    wrong = copy.deepcopy(whole["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.32", strict=True)


def test_helm_lints_it() -> None:
    told = chart.lint(CHART, ALL, strict=True)
    assert not told["errors"], told


def test_with_all_values_every_kind_is_there(whole: dict[str, dict[str, Any]]) -> None:
    assert set(whole) == {
        *("Deployment", "Service", "Service east-neural-bridge-metrics", "ServiceAccount"),
        *("PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"),
        *("ServiceMonitor", "PrometheusRule"),
    }


@pytest.mark.parametrize("left_out", sorted(LEAST))
def test_what_is_missing_is_named(loaded: Chart, left_out: str) -> None:
    values = {key: value for key, value in LEAST.items() if key != left_out}
    with pytest.raises(HelmError, match=rf"{left_out}\.\w+:"):
        rendered(loaded, values)


@pytest.mark.parametrize(
    "values",
    [
        {"replcas": 3},
        {"replicas": 0},
        {"settings": {"port": 1}},
        {"database": {"url": "postgresql://bridge:secret@db/bridge"}},
        {"service": {"type": "Loadbalancer"}},
        {"autoscaling": {"queueAgeSeconds": "fast"}},
    ],
    ids=["unknown", "none", "taken", "password", "type", "text"],
)
def test_values_that_cannot_be_meant_are_refused(loaded: Chart, values: dict[str, Any]) -> None:
    with pytest.raises(HelmError):
        rendered(loaded, LEAST | values)


def test_containers_are_locked_down(whole: dict[str, dict[str, Any]]) -> None:
    found = pod(whole)
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert found["automountServiceAccountToken"] is False
    for container in (*found["containers"], *found["initContainers"]):
        locked = container["securityContext"]
        assert locked["readOnlyRootFilesystem"] is True
        assert locked["allowPrivilegeEscalation"] is False
        assert locked["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_secrets_come_by_reference_alone(whole: dict[str, dict[str, Any]]) -> None:
    assert "Secret" not in whole
    for container in (*pod(whole)["containers"], *pod(whole)["initContainers"]):
        for variable in container.get("env", ()):
            if "PASSWORD" in variable["name"]:
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "db"
    (authority,) = [v for v in pod(whole)["volumes"] if v["name"] == "authority"]
    keys = [item["key"] for item in authority["secret"]["items"]]
    assert keys == ["roots.pem", "intermediate.pem"], "the root's key stays out of the cluster"


def test_the_environment_is_settings_that_the_service_takes(
    whole: dict[str, dict[str, Any]],
) -> None:
    """Helm reads 10000000000 as a float and would print it as 1e+10."""
    env = {v["name"]: v.get("value", "") for v in pod(whole)["containers"][0]["env"]}
    image = {"NEURAL_BRIDGE_CLOUD_DIRECTORY": "/srv/bridge"}
    chosen = settings.load({}, None, env | image)
    assert chosen.scene_memory_bytes == 10**10 and chosen.engines == 2
    assert chosen.canary_agreement == 0.75
    assert [*chosen.bundles] == [Path("/models/bundles/edge-a-cloud")]
    ports = {p["name"]: p["containerPort"] for p in pod(whole)["containers"][0]["ports"]}
    assert ports == {
        "devices": chosen.port,
        "open": chosen.open_port,
        "api": chosen.api_port,
        "metrics": chosen.metrics_port,
    }


def test_a_pod_is_given_longer_to_end_than_its_requests(whole: dict[str, dict[str, Any]]) -> None:
    container = pod(whole)["containers"][0]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    drain = next(v["value"] for v in container["env"] if v["name"].endswith("_DRAIN_S"))
    assert pod(whole)["terminationGracePeriodSeconds"] >= pause + int(drain) + 10


def test_probes_ask_what_each_is_for(whole: dict[str, dict[str, Any]]) -> None:
    """A full queue makes a front end unready; it must not be killed for it."""
    container = pod(whole)["containers"][0]
    paths = {name: container[name]["httpGet"]["path"] for name in container if "Probe" in name}
    assert paths == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_it_grows_with_the_age_of_the_queue(whole: dict[str, dict[str, Any]]) -> None:
    spec = whole["HorizontalPodAutoscaler"]["spec"]
    (metric,) = spec["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "250m"}
    assert name.removeprefix("neural_bridge_cloud_") in (ROOT / "docs/metrics.md").read_text()
    assert "replicas" not in whole["Deployment"]["spec"], "Helm would undo the autoscaler's choice"


def test_metrics_are_reached_by_the_monitoring_alone(whole: dict[str, dict[str, Any]]) -> None:
    rules = whole["NetworkPolicy"]["spec"]["ingress"]
    ports = {port["port"]: "from" in rule for rule in rules for port in rule["ports"]}
    assert ports == {"devices": False, "open": False, "api": False, "metrics": True}
    public = {port["name"] for port in whole["Service"]["spec"]["ports"]}
    assert public == {"devices", "open", "api"}


def test_the_scrape_trusts_the_name_in_the_certificate(whole: dict[str, dict[str, Any]]) -> None:
    (endpoint,) = whole["ServiceMonitor"]["spec"]["endpoints"]
    names = pod(whole)["initContainers"][0]["args"]
    assert endpoint["tlsConfig"]["serverName"] in names and "bridge.example" in names
    wanted = whole["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
    labels = whole["Service east-neural-bridge-metrics"]["metadata"]["labels"]
    assert wanted <= labels.items() and not wanted <= whole["Service"]["metadata"]["labels"].items()


def test_the_rules_are_those_of_every_stack(whole: dict[str, dict[str, Any]]) -> None:
    files = sorted(RULES.glob("*.yaml"))
    wanted = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert wanted and whole["PrometheusRule"]["spec"]["groups"] == wanted


def test_the_schema_has_every_value(loaded: Chart) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def missing(values: dict[str, Any], allowed: dict[str, Any], at: str = "") -> Iterator[str]:
        for key, value in values.items():
            part = allowed.get("properties", {}).get(key)
            if part is None:
                yield f"{at}{key}"
            elif isinstance(value, dict) and "properties" in part:
                yield from missing(value, part, f"{at}{key}.")

    assert not list(missing(yaml.safe_load((CHART / "values.yaml").read_text()), schema))
