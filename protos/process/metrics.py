"""Prometheus metrics of a process: a registry, a prefix, and the frame metrics of both halves.

The metrics of a set are the rows of its class (`metric_rows.py`). Names end with their base unit
(`_seconds`, `_bytes`); `_total` stands only on counters.
"""

from __future__ import annotations

from typing import Any, ClassVar

from prometheus_client import CollectorRegistry

from protos.distortion import Distortion
from protos.process.exposition import Registry
from protos.process.metric_kinds import Label
from protos.process.metric_rows import FIDELITY, LATENCY, LINK, CounterRow, HistogramRow, Row
from protos.process.trace import WHY

BYTES = (16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576)
RATIO = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POINT = Label("point", bound="operating points of the bundles in use")
BUNDLE = Label("bundle", bound="bundles served")
_TOKENS = (1, 2, 4, 8, 12, 16, 24, 36, 64, 128, 256, 1024)
_UNFAMILIARITY = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


class Table:
    """Metrics, in a registry of their own (so that tests may have many).

    Attributes:
        prefix: in front of every name.
    """

    prefix: ClassVar[str]

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else Registry()
        for row in self.rows():
            self.__dict__[row.attribute] = row.make(self.prefix, self.registry)

    @classmethod
    def rows(cls) -> list[Row[Any]]:
        """The table: the rows of this class and those it is made of."""
        return [
            row
            for part in reversed(cls.__mro__)
            for row in vars(part).values()
            if isinstance(row, Row)
        ]


class MetricSet(Table):
    """The metrics of one half; those of frames are in both."""

    payload_bytes = HistogramRow(
        "payload_bytes", "bytes", "Payload of one frame", LINK, POINT, buckets=BYTES
    )
    kept_tokens = HistogramRow(
        "kept_tokens", "tokens", "Image tokens kept in one frame", LINK, buckets=_TOKENS
    )
    quantization_error = HistogramRow(
        "quantization_error_ratio",
        "ratio",
        "Relative L2 error of the quantized latents",
        FIDELITY,
        buckets=RATIO,
    )
    dropped_attention = HistogramRow(
        "dropped_attention_ratio",
        "ratio",
        "Attention mass of the dropped tokens",
        FIDELITY,
        buckets=RATIO,
    )
    latent_residual = HistogramRow(
        "latent_residual_ratio",
        "ratio",
        "Share of the normalised cache outside the latents",
        FIDELITY,
        buckets=RATIO,
    )
    unfamiliarity = HistogramRow(
        "unfamiliarity_ratio",
        "ratio",
        "Distance from the calibration statistics (Mahalanobis, per root latent)",
        FIDELITY,
        buckets=_UNFAMILIARITY,
    )

    traces = CounterRow(
        "traces_total",
        "traces",
        "Traces sent to the collector, by why they were kept; dropped: too many at once, or the "
        "collector did not keep up",
        LATENCY,
        Label("why", (*WHY, "dropped")),
    )

    def observe_state(self, kept_tokens: int, distortion: Distortion) -> None:
        """Record how many tokens a frame keeps, and its distortion."""
        self.kept_tokens.observe(kept_tokens)
        self.quantization_error.observe(distortion.quantize)
        self.dropped_attention.observe(distortion.dropped_attention)
        self.latent_residual.observe(distortion.latent_residual)
        self.unfamiliarity.observe(distortion.unfamiliarity)
