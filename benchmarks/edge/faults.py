"""The faults that `make test-edge` injects: read from its report, never measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.edge.figures import at_least, at_most, not_run

REPORT = command.ROOT / "build" / "edge_faults.json"
FAULTS = 3000
_LOST, _INJECTED = "frames accepted and later lost, or answered twice", "faults injected"


def faults(folder: Path, quick: bool, report: Path = REPORT) -> dict[str, Any]:
    """Read the report; without one the figures say that they were not measured."""
    if not report.is_file():
        why = f"no {report.name}: make test-edge"
        return {
            "figures": [
                not_run(_LOST, "≤ 0", "frames", why),
                not_run(_INJECTED, f"≥ {FAULTS}", "", why),
            ]
        }
    told = json.loads(report.read_text(encoding="utf-8"))
    return {
        "kinds": told["kinds"],
        "figures": [
            at_most(_LOST, told["lost"] + told["doubled"], 0, "frames"),
            at_least(_INJECTED, told["faults"], FAULTS, ""),
        ],
    }
