"""Figures of the report: name, value, unit, target, met; None where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def at_least(name: str, value: float, target: float, unit: str) -> dict[str, Any]:
    """A figure that is to be at least the target."""
    return {
        "name": name,
        "value": _shown(value),
        "unit": unit,
        "target": f"≥ {target:g}",
        "met": value >= target,
    }


def at_most(name: str, value: float, target: float, unit: str) -> dict[str, Any]:
    """A figure that is to be at most the target."""
    return {
        "name": name,
        "value": _shown(value),
        "unit": unit,
        "target": f"≤ {target:g}",
        "met": value <= target,
    }


def beside(name: str, value: float, unit: str) -> dict[str, Any]:
    """A figure without a target, to compare another one with."""
    return {"name": name, "value": _shown(value), "unit": unit, "target": "", "met": None}


def not_run(name: str, target: str, unit: str, why: str) -> dict[str, Any]:
    """A figure that nobody measured."""
    return {
        "name": name,
        "value": None,
        "unit": unit,
        "target": target,
        "met": None,
        "not_run": why,
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that at least this share of them do not exceed; infinite for none."""
    ordered = sorted(values)
    place = math.ceil(round(share * len(ordered), 9))
    return ordered[max(0, place - 1)] if ordered else math.inf


def _shown(value: float) -> float | None:
    """Strict JSON has no infinity."""
    return round(value, 3) if math.isfinite(value) else None
