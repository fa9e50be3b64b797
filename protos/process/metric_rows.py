"""The table of metrics, a row a metric: it makes the registry, `docs/metrics.md` and their test.

A row stands in a class (`protos.process.metrics.MetricSet`) under the name by which code counts:
`metrics.frames.labels("key").inc()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, ClassVar, Generic, TypeVar, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from protos.process.metric_kinds import (
    BoundedGauge,
    Collected,
    Label,
    LateCounter,
    LateHistogram,
    number_of,
)

FLEET, LINK, LATENCY = "Fleet", "Link", "Latency"
FIDELITY, ENGINE, SLO = "Fidelity", "Engine", "SLO"
DASHBOARDS = (FLEET, LINK, LATENCY, FIDELITY, ENGINE, SLO)
"""The dashboards, as `deploy/monitoring/grafana` has them."""
BASE_UNITS = ("seconds", "bytes", "ratio", "joules", "watts", "celsius")
"""Units that end a metric's name; any other unit says what is counted."""
STATE = "state"
"""Unit of a gauge that is 1 or 0."""
_PRESET = 32
"""Series of a counter or histogram that are shown from the start, with 0; not if there are more."""

Kind = TypeVar("Kind")


class Row(Generic[Kind]):
    """One metric.

    Args:
        name: without the prefix of its half; ends with the base unit, and `_total` on counters.
        unit: one of `BASE_UNITS`; else what is counted, or `STATE`.
        meaning: shown to Prometheus, too.
        dashboards: which dashboard shows it, or several of them.
        labels: its labels, each with what bounds it.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        name: str,
        unit: str,
        meaning: str,
        dashboards: str | tuple[str, ...],
        *labels: Label,
    ) -> None:
        self.name, self.unit, self.meaning, self.labels = name, unit, meaning, labels
        self.dashboards = (dashboards,) if isinstance(dashboards, str) else dashboards
        self.attribute = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name

    @overload
    def __get__(self, instance: None, owner: type) -> Row[Kind]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Kind: ...

    def __get__(self, instance: object | None, owner: type) -> Row[Kind] | Kind:
        """The row of a class. A set's own metric stands in its `__dict__` and comes first."""
        if instance is None:
            return self
        raise AttributeError(f"{self.attribute} is not made yet")

    @property
    def base_unit(self) -> str:
        """The unit if it ends the name, else nothing."""
        return self.unit if self.unit in BASE_UNITS else ""

    @property
    def buckets(self) -> tuple[float, ...]:
        """Upper bounds of a histogram's buckets, without infinity."""
        return ()

    @property
    def most_series(self) -> int:
        """How many combinations of label values there can be, without those with `other`."""
        return number_of(self.labels)

    def make(self, prefix: str, registry: CollectorRegistry) -> Kind:
        """The metric, registered."""
        made = self._made(prefix + self.name, [label.name for label in self.labels], registry)
        if self.labels:
            made.bound_by(self.labels)
            if self.kind != "gauge" and all(label.values for label in self.labels):
                if self.most_series <= _PRESET:
                    for values in product(*(label.values for label in self.labels)):
                        made.labels(*values)
        found: Kind = made
        return found

    def _made(self, name: str, labels: list[str], registry: CollectorRegistry) -> Any:
        raise NotImplementedError


class CounterRow(Row[Counter]):
    """A counter."""

    kind = "counter"

    def _made(self, name: str, labels: list[str], registry: CollectorRegistry) -> Any:
        return LateCounter(name, self.meaning, labels, unit=self.base_unit, registry=registry)


class GaugeRow(Row[Gauge]):
    """A gauge."""

    kind = "gauge"

    def _made(self, name: str, labels: list[str], registry: CollectorRegistry) -> Any:
        return BoundedGauge(name, self.meaning, labels, unit=self.base_unit, registry=registry)


class HistogramRow(Row[Histogram]):
    """A histogram.

    Args:
        buckets: their upper bounds; where a target of `docs/dashboards.md` is, a bucket ends.
        exemplars: whether observations come with the id of their request.
    """

    kind = "histogram"

    def __init__(
        self,
        name: str,
        unit: str,
        meaning: str,
        dashboards: str | tuple[str, ...],
        *labels: Label,
        buckets: Sequence[float],
        exemplars: bool = False,
    ) -> None:
        super().__init__(name, unit, meaning, dashboards, *labels)
        self._buckets, self.exemplars = tuple(map(float, buckets)), exemplars

    @property
    def buckets(self) -> tuple[float, ...]:
        """Upper bounds of the buckets, without infinity."""
        return self._buckets

    def _made(self, name: str, labels: list[str], registry: CollectorRegistry) -> Any:
        return LateHistogram(
            name,
            self.meaning,
            labels,
            unit=self.base_unit,
            registry=registry,
            buckets=self._buckets,
        )


class CollectedRow(Row[Collected]):
    """A gauge, or a counter if its name ends in `_total`, that its owner keeps the values of."""

    def __set_name__(self, owner: type, name: str) -> None:
        super().__set_name__(owner, name)
        self.kind = "counter" if self.name.endswith("_total") else "gauge"  # type: ignore[misc]

    def make(self, prefix: str, registry: CollectorRegistry) -> Collected:
        """The metric, registered."""
        made = Collected(prefix + self.name, self.kind, self.meaning, self.base_unit, self.labels)
        registry.register(made)
        return made
