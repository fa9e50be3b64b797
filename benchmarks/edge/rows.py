"""Rows of the report, and the times that all parts share."""

from __future__ import annotations

from typing import Any

EVERY_S, LINGER_S, ACK_WAIT_S = 1.0, 10.0, 4.0
"""One frame a second; see the agent's settings."""


def row(name: str, value: float, target: float, unit: str = "times fewer bytes") -> dict[str, Any]:
    """A figure that is to be at least the target."""
    return {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "target": f"≥ {target:g}",
        "met": value >= target,
    }
