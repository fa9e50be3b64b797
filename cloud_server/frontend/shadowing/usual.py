"""What is usual for a camera: the mean of a figure over its first shadowed frames, and a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FRAMES = 1000
"""Frames that make what is usual: at one shadowed frame in 100 s a day, with its night."""
_SPREAD = 3.3
"""Standard errors above the mean: the bound is too low for one camera in 2,000."""
_MARGIN = 0.05
"""By so much of the mean it may rise without being another one."""
_LEAST, _MOST = 1e-3, 0.95


@dataclass
class Usual:
    """The first frames of a camera with one bundle.

    Attributes:
        count: frames so far, at most `FRAMES`.
        total, squares: sums of the figure, 0..1, and of its square.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, figure: float) -> None:
        """Add a frame's figure, 0..1, while `limit` is None."""
        self.count += 1
        self.total += figure
        self.squares += figure * figure

    @property
    def limit(self) -> float | None:
        """Largest mean that is not unusual; None before there are enough frames."""
        if self.count < FRAMES:
            return None
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean * mean)
        bound = mean * (1 + _MARGIN) + _SPREAD * math.sqrt(variance / self.count)
        return min(_MOST, max(_LEAST, bound))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Usual:
        """From what `to_json` made."""
        return cls(**value)
