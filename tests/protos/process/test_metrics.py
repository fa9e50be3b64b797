"""Metrics that both halves have, under each one's prefix."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from cloud_server.metrics import Metrics as CloudMetrics
from edge_agent.metrics import Metrics as EdgeMetrics
from protos.distortion import Distortion
from protos.process.metrics import MetricSet

HALVES = [EdgeMetrics, CloudMetrics]


@pytest.mark.parametrize("half", HALVES)
def test_a_frames_figures_have_the_same_names_in_both_halves(half: type[MetricSet]) -> None:
    metrics = half()
    metrics.observe_state(12, Distortion(0.1, 0.2, 0.3, 1.5))

    def total(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"{half.prefix}{name}_sum")

    assert total("kept_tokens") == 12
    assert total("quantization_error_ratio") == 0.1
    assert total("dropped_attention_ratio") == 0.2
    assert total("latent_residual_ratio") == 0.3
    assert total("unfamiliarity_ratio") == 1.5
    assert half.prefix in ("neural_bridge_edge_", "neural_bridge_cloud_")


def test_each_set_has_a_registry_of_its_own_unless_one_is_given() -> None:
    assert EdgeMetrics().registry is not EdgeMetrics().registry
    registry = CollectorRegistry()
    assert CloudMetrics(registry).registry is registry
