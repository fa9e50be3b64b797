"""Rows that other commands measure: their newest reports are read, nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.edge.figures import not_run

REPORTS = {
    "panels": ("dashboards.json", "panels whose every query returns data", "all", "panels"),
    "drift": ("shadowing.json", "drift alarm, day to night", "≤ 200", "frames"),
}
"""By row: the report, and the figure's name, target and unit while there is none."""


def of_report(row: str) -> Callable[[Path, bool], dict[str, Any]]:
    """A part that reads a row's figures from its report."""
    name, figure, target, unit = REPORTS[row]

    def read(folder: Path, quick: bool) -> dict[str, Any]:
        path = command.REPORTS / name
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        except (OSError, ValueError, KeyError):
            return {"figures": [not_run(figure, target, unit, f"no build/bench/{name}")]}
        return {"figures": figures}

    return read
