"""Metrics under the names of OpenTelemetry's conventions for model servers, beside our own.

Convention: semantic conventions 1.41.0, "Generative AI model server metrics" (all of them are in
development there, hence the setting). Names are as an OpenTelemetry collector writes them for
Prometheus: dots become underscores, the unit ends the name.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from protos.process.metric_kinds import Label
from protos.process.metric_rows import LATENCY, HistogramRow
from protos.process.metrics import Table

CONVENTIONS = "https://opentelemetry.io/schemas/1.41.0"
OPERATION, PROVIDER = "chat", "neural_bridge"
_ATTRIBUTES = (
    Label("gen_ai_operation_name", (OPERATION,)),
    Label("gen_ai_provider_name", (PROVIDER,)),
    Label("gen_ai_request_model", bound="the large model", most=1),
)


class GenAiMetrics(Table):
    """These metrics.

    Args:
        registry: that they are shown in.
        model: the large model's name.
    """

    prefix = "gen_ai_server_"

    request_duration = HistogramRow(
        "request_duration_seconds",
        "seconds",
        "From a request's last byte received to its answer sent",
        LATENCY,
        *_ATTRIBUTES,
        buckets=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
        + (2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    )
    time_to_first_token = HistogramRow(
        "time_to_first_token_seconds",
        "seconds",
        "From a request's last byte received to its answer's first token sent",
        LATENCY,
        *_ATTRIBUTES,
        buckets=(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1)
        + (0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    )
    time_per_output_token = HistogramRow(
        "time_per_output_token_seconds",
        "seconds",
        "Mean time of each token after an answer's first one",
        LATENCY,
        *_ATTRIBUTES,
        buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    )

    def __init__(self, registry: CollectorRegistry | None = None, model: str = "") -> None:
        super().__init__(registry)
        named = OPERATION, PROVIDER, model
        self._duration = self.request_duration.labels(*named)
        self._first = self.time_to_first_token.labels(*named)
        self._each = self.time_per_output_token.labels(*named)

    def answered(self, first_token_s: float, total_s: float, tokens: int) -> None:
        """An answer has left.

        Args:
            first_token_s: until its first token was sent, seconds.
            total_s: until it was sent, seconds.
            tokens: its length.
        """
        self._duration.observe(total_s)
        self._first.observe(first_token_s)
        if tokens > 1:
            self._each.observe((total_s - first_token_s) / (tokens - 1))
