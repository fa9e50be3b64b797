"""The kinds of metrics: `prometheus_client`'s, quick to count into and bounded in number.

A label value outside its set, or one too many, counts as `other`, so no peer can make new series
without end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

OTHER = "other"
"""Label value of what is outside a label's set, or of one too many."""
_SORTED_AT_ONCE = 1024
_CREATED = "_created"


class Label(NamedTuple):
    """A label and what bounds its values.

    Attributes:
        values: all that it can have; empty if they are not known beforehand.
        bound: without `values`, what bounds them, in words.
        most: how many there can be; more of them count as `other`.
    """

    name: str
    values: tuple[str, ...] = ()
    bound: str = ""
    most: int = 64

    @property
    def number(self) -> int:
        """How many values it can have."""
        return len(self.values) or self.most


class _Labelled(MetricWrapperBase):
    """A metric whose children are found quickly by their labels, and are bounded in number."""

    _bounds: tuple[Label, ...] = ()
    _most = 0

    def bound_by(self, labels: tuple[Label, ...]) -> None:
        """Bound the label values; the metric's children then are at most the product, and one."""
        self._bounds, self._most = labels, number_of(labels)

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Any:
        """The child of these label values."""
        known: Any = self._metrics
        found = known.get(labelvalues)
        if found is not None:
            return found
        if not self._bounds or labelkwargs:
            return super().labels(*labelvalues, **labelkwargs)
        values = [str(value) for value in labelvalues]
        if len(values) == len(self._bounds):
            full = tuple(values) not in known and len(known) >= self._most
            for at, label in enumerate(self._bounds):
                if full or (label.values and values[at] not in label.values):
                    values[at] = OTHER
        return super().labels(*values)


def number_of(labels: tuple[Label, ...]) -> int:
    """How many combinations of label values there can be."""
    number = 1
    for label in labels:
        number *= label.number
    return number


class LateCounter(_Labelled, Counter):
    """A counter that adds increments up many at once, or when it is read."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._late: deque[float] = deque()
        self._adding = Lock()

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Add to it, 1 by default."""
        self._late.append(amount)
        if amount < 0 or len(self._late) >= _SORTED_AT_ONCE:
            self._add()

    def _child_samples(self) -> Iterable[Sample]:
        self._add()
        return [one for one in super()._child_samples() if one.name != _CREATED]

    def _add(self) -> None:
        """Add up what came so far; the thread of the metrics port does this too."""
        with self._adding:
            super().inc(sum([self._late.popleft() for _ in range(len(self._late))]))


class BoundedGauge(_Labelled, Gauge):
    """A gauge whose label values are bounded."""


class LateHistogram(_Labelled, Histogram):
    """A histogram that sorts observations into its buckets many at once, or when it is read."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._late: deque[float] = deque()
        self._marked: deque[tuple[float, dict[str, str], float]] = deque(maxlen=_SORTED_AT_ONCE)
        self._sorting = Lock()

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Take one observation, with an example of where it came from."""
        if exemplar:
            self._marked.append((amount, exemplar, time.time()))
        self._late.append(amount)
        if len(self._late) >= _SORTED_AT_ONCE:
            self._sort()

    def _child_samples(self) -> Iterable[Sample]:
        self._sort()
        return [one for one in super()._child_samples() if one.name != _CREATED]

    def _sort(self) -> None:
        """Sort what was observed so far; the thread of the metrics port does this too."""
        with self._sorting:
            amounts = [self._late.popleft() for _ in range(len(self._late))]
            self._sum.inc(sum(amounts))
            places = np.searchsorted(self._upper_bounds, amounts)
            for place, count in zip(*np.unique(places, return_counts=True), strict=True):
                if place < len(self._buckets):  # not NaN
                    self._buckets[place].inc(int(count))
            for _ in range(len(self._marked)):  # the newest one of each bucket stays
                amount, exemplar, when = self._marked.popleft()
                place = np.searchsorted(self._upper_bounds, amount)
                if place < len(self._buckets):
                    self._buckets[place].set_exemplar(Exemplar(exemplar, amount, when))


class Collected(Collector):
    """A metric that is read from its owner when Prometheus asks.

    Args:
        name: the whole name.
        kind: counter or gauge.
        text: its description.
        unit: base unit; may be empty.
        labels: its labels.

    Attributes:
        names: of its labels.
    """

    def __init__(
        self, name: str, kind: str, text: str, unit: str, labels: tuple[Label, ...]
    ) -> None:
        self._name, self._kind, self._text, self._unit = name, kind, text, unit
        self.names = [label.name for label in labels]
        self._most = number_of(labels)
        self._read: Callable[[], Iterable[tuple[Sequence[str], float]]] = tuple

    def read_from(self, read: Callable[[], Iterable[tuple[Sequence[str], float]]]) -> None:
        """Take the samples from here.

        Args:
            read: returns label values with their value; any thread may call it. What goes beyond
                the labels' bound is left out.
        """
        self._read = read

    def samples(self) -> Iterator[tuple[Sequence[str], float]]:
        """Label values with their value."""
        return islice(iter(self._read()), self._most)

    def empty(self) -> Metric:
        """The metric without samples."""
        stem = self._name.removesuffix("_total") if self._kind == "counter" else self._name
        return Metric(stem, self._text, self._kind, self._unit)

    def describe(self) -> Iterable[Metric]:
        """The metric without samples."""
        return [self.empty()]

    def collect(self) -> Iterator[Metric]:
        """The metric; Prometheus calls it in the thread of the metrics port."""
        family, names = self.empty(), self.names
        for values, value in self.samples():
            family.add_sample(self._name, dict(zip(names, values, strict=True)), value)
        yield family
