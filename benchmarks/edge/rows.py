"""Rows of the report, and the ways of sending that all parts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.edge.film import Coded
from benchmarks.edge.links import Arm

EVERY_S, LINGER_S, SHORT_WAIT_S, LONG_WAIT_S = 1.0, 10.0, 4.0, 40.0
"""One frame a second; see the agent's settings. Acknowledgements wait a short or a long time."""


@dataclass(frozen=True)
class Way:
    """One way of sending: see `benchmarks.edge.links.Arm`."""

    linger_s: float = 0.0
    ack_wait_s: float = 0.0
    timestamps: bool = True

    def arm(self, film: str, way: str, frames: Sequence[Coded]) -> Arm:
        """A film sent in this way; its name is both names."""
        return Arm(
            f"{film}, {way}", frames, self.linger_s, self.ack_wait_s, EVERY_S, self.timestamps
        )


LINGERING = {
    "linger 10 s": Way(LINGER_S),
    "linger 10 s, acknowledgements wait 40 s": Way(LINGER_S, LONG_WAIT_S),
    "linger 10 s, acknowledgements wait 40 s, no TCP timestamps": Way(LINGER_S, LONG_WAIT_S, False),
}


def row(name: str, value: float, target: float, unit: str = "times fewer bytes") -> dict[str, Any]:
    """A figure that is to be at least the target."""
    return {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "target": f"≥ {target:g}",
        "met": value >= target,
    }
