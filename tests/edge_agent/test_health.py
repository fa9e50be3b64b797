"""The agent's HTTP port."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from edge_agent.health import HealthServer
from edge_agent.metrics import Metrics
from protos.errors import ConfigError


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_port_shows_metrics_health_and_readiness() -> None:
    metrics, missing = Metrics(), ["no session with the server"]
    metrics.answers.inc(3)
    server = HealthServer(metrics.registry, lambda: missing[0])
    try:
        status, text = fetch(server.port, "/metrics")
        assert status == 200 and "neural_bridge_edge_answers_total 3.0" in text
        assert fetch(server.port, "/healthz") == (200, "ok\n")
        assert fetch(server.port, "/readyz") == (503, "no session with the server\n")
        missing[0] = ""
        assert fetch(server.port, "/readyz") == (200, "ready\n")
        assert fetch(server.port, "/other")[0] == 404
        with pytest.raises(ConfigError, match="cannot be bound"):
            HealthServer(metrics.registry, lambda: "", port=server.port)
    finally:
        server.close()
