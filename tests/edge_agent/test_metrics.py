"""The agent's metrics: names, and the memory."""

from __future__ import annotations

import numpy as np
from prometheus_client import generate_latest

from edge_agent.metrics import Metrics


def test_metric_names_follow_the_rules() -> None:
    for family in Metrics().registry.collect():
        assert family.name.startswith("neural_bridge_edge_")
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_bytes", "_tokens", "_ratio"))
        assert not (family.type == "gauge" and family.name.endswith("_total"))


def test_the_metrics_show_the_agents_memory_as_it_is_now() -> None:
    metrics = Metrics()

    def shown() -> float:
        return metrics.registry.get_sample_value("neural_bridge_edge_resident_memory_bytes") or 0.0

    before = shown()
    block = np.ones(128 << 20, dtype=np.uint8)
    assert shown() > before + block.nbytes / 2


def test_a_scrape_shows_what_was_counted() -> None:
    metrics = Metrics()
    metrics.answers.inc(3)
    assert b"neural_bridge_edge_answers_total 3.0\n" in generate_latest(metrics.registry)
