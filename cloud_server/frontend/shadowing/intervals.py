"""The mean of bounded figures with an interval that holds at every time at once.

Predictable plug-in empirical-Bernstein confidence sequence (Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting", 2024, theorem 2): whenever one looks, the mean lies
in the interval, with 95 % probability for all times together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_ALPHA = 0.05
_HIGHEST = 0.5
"""Largest weight of a bet."""


@dataclass
class Running:
    """The mean of figures in 0..`most`; higher ones count as `most`.

    Attributes:
        most: largest figure.
        count: figures so far.
        total: their sum, as the shares of `most`.
        spread: sum of their squared distances from the mean before each.
        weights, weighted, cost: sums of the weights λ, of λ X and of the variance terms.
    """

    most: float = 1.0
    count: int = 0
    total: float = 0.0
    spread: float = 0.0
    weights: float = 0.0
    weighted: float = 0.0
    cost: float = 0.0

    def add(self, figure: float) -> None:
        """Add a figure."""
        x = min(1.0, max(0.0, figure / self.most))
        before = (0.5 + self.total) / (1 + self.count)
        variance = (0.25 + self.spread) / (1 + self.count)
        self.count += 1
        n = self.count
        weight = math.sqrt(2 * math.log(2 / _ALPHA) / (variance * n * math.log(1 + n)))
        weight = min(_HIGHEST, weight)
        self.total += x
        self.spread += (x - (0.5 + self.total) / (1 + n)) ** 2
        self.weights += weight
        self.weighted += weight * x
        self.cost += 4 * (x - before) ** 2 * (-math.log1p(-weight) - weight) / 4

    @property
    def mean(self) -> float | None:
        """The mean so far; None before the first figure."""
        return self.most * self.total / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; the whole range before the first figure."""
        if not self.count:
            return 0.0, self.most
        middle = self.weighted / self.weights
        half = (math.log(2 / _ALPHA) + self.cost) / self.weights
        return self.most * max(0.0, middle - half), self.most * min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Running:
        """From what `to_json` made."""
        return cls(**value)
