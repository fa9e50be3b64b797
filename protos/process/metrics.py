"""Prometheus metrics of a process: a registry, a prefix, and the frame metrics of both halves.

Names end with their base unit (`_seconds`, `_bytes`); `_total` stands only on counters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, ClassVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

from protos.distortion import Distortion

BYTES = (16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576)
RATIO = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TOKENS = (1, 2, 4, 8, 12, 16, 24, 36, 64, 128, 256, 1024)
_SORTED_AT_ONCE = 1024
_UNFAMILIARITY = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


class MetricSet:
    """The metrics of one half, in a registry of its own (so that tests may have many).

    Attributes:
        prefix: in front of every name.
    """

    prefix: ClassVar[str]

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.payload_bytes = self.histogram("payload_bytes", "Payload of one frame", BYTES, "point")
        self.kept_tokens = self.histogram("kept_tokens", "Image tokens kept in one frame", _TOKENS)
        self.quantization_error = self.histogram(
            "quantization_error_ratio", "Relative L2 error of the quantized latents", RATIO
        )
        self.dropped_attention = self.histogram(
            "dropped_attention_ratio", "Attention mass of the dropped tokens", RATIO
        )
        self.latent_residual = self.histogram(
            "latent_residual_ratio", "Share of the normalised cache outside the latents", RATIO
        )
        self.unfamiliarity = self.histogram(
            "unfamiliarity_ratio",
            "Distance from the calibration statistics (Mahalanobis, per root latent)",
            _UNFAMILIARITY,
        )

    def observe_state(self, kept_tokens: int, distortion: Distortion) -> None:
        """Record how many tokens a frame keeps, and its distortion."""
        self.kept_tokens.observe(kept_tokens)
        self.quantization_error.observe(distortion.quantize)
        self.dropped_attention.observe(distortion.dropped_attention)
        self.latent_residual.observe(distortion.latent_residual)
        self.unfamiliarity.observe(distortion.unfamiliarity)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """A counter; `labels` are the names of its labels."""
        return _Counter(self.prefix + name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A gauge."""
        return Gauge(self.prefix + name, text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """A histogram; `buckets` are the upper bounds."""
        return _Histogram(self.prefix + name, text, labels, buckets=buckets, registry=self.registry)


class _Labelled(MetricWrapperBase):
    """A metric whose children are found quickly by their labels."""

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Any:
        """The child of these label values."""
        known: Any = self._metrics
        found = known.get(labelvalues)
        return super().labels(*labelvalues, **labelkwargs) if found is None else found


class _Counter(_Labelled, Counter):
    """A counter that adds increments up many at once, or when it is read."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._late: deque[float] = deque()
        self._adding = Lock()

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._late.append(amount)
        if amount < 0 or len(self._late) >= _SORTED_AT_ONCE:
            self._add()

    def _child_samples(self) -> Iterable[Sample]:
        self._add()
        return super()._child_samples()

    def _add(self) -> None:
        """Add up what came so far; the thread of the metrics port does this too."""
        with self._adding:
            super().inc(sum([self._late.popleft() for _ in range(len(self._late))]))


class _Histogram(_Labelled, Histogram):
    """A histogram that sorts observations into its buckets many at once, or when it is read."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._late: deque[float] = deque()
        self._sorting = Lock()

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._late.append(amount)
        if len(self._late) >= _SORTED_AT_ONCE:
            self._sort()

    def _child_samples(self) -> Iterable[Sample]:
        self._sort()
        return super()._child_samples()

    def _sort(self) -> None:
        """Sort what was observed so far; the thread of the metrics port does this too."""
        with self._sorting:
            amounts = [self._late.popleft() for _ in range(len(self._late))]
            self._sum.inc(sum(amounts))
            places = np.searchsorted(self._upper_bounds, amounts)
            for place, count in zip(*np.unique(places, return_counts=True), strict=True):
                if place < len(self._buckets):  # not NaN
                    self._buckets[place].inc(int(count))
