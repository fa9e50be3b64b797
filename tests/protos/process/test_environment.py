"""Variables that a container platform injects are told from settings."""

from __future__ import annotations

from protos.process.environment import service_links


def test_variables_that_kubernetes_makes_of_a_service_are_told_from_settings() -> None:
    injected = {
        "NEURAL_BRIDGE_CLOUD_PORT": "tcp://10.0.0.7:50051",
        "NEURAL_BRIDGE_CLOUD_SERVICE_HOST": "10.0.0.7",
        "NEURAL_BRIDGE_CLOUD_SERVICE_PORT": "50051",
        "NEURAL_BRIDGE_CLOUD_SERVICE_PORT_GRPC": "50051",
        "NEURAL_BRIDGE_CLOUD_PORT_50051_TCP": "tcp://10.0.0.7:50051",
        "NEURAL_BRIDGE_CLOUD_PORT_50051_TCP_PROTO": "tcp",
        "NEURAL_BRIDGE_CLOUD_PORT_50051_TCP_PORT": "50051",
        "NEURAL_BRIDGE_CLOUD_PORT_50051_TCP_ADDR": "10.0.0.7",
        "NEURAL_BRIDGE_CLOUD_METRICS_PORT": "tcp://[fd00::7]:9464",
        "NEURAL_BRIDGE_CLOUD_METRICS_SERVICE_HOST": "10.0.0.8",
    }
    ours = {"NEURAL_BRIDGE_CLOUD_PORT": "50051", "NEURAL_BRIDGE_CLOUD_HOST": "::"}
    assert service_links(injected, "NEURAL_BRIDGE_CLOUD_") == sorted(injected)
    assert service_links(ours, "NEURAL_BRIDGE_CLOUD_") == []
