"""Measures what a device costs: bytes of frames on the link, an install, a start.

Needs root for network namespaces. Results of earlier runs are kept (`--fresh` measures again).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from benchmarks import command
from benchmarks.edge.fixed_camera import fixed_camera
from benchmarks.edge.stills import stills
from benchmarks.edge.without_torch import without_torch
from reference.report.parts import Table, show

Part: TypeAlias = Callable[[Path, bool], dict[str, Any]]
"""Measures into a folder, quickly or not; its result has `figures`."""
PARTS: dict[str, Part] = {
    "stills": stills,
    "fixed_camera": fixed_camera,
    "without_torch": without_torch,
}


def bench(given: argparse.Namespace) -> int:
    """Measure, write and print."""
    folder = given.out / "edge"
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        kept = folder / f"{name}{'-quick' if given.quick else ''}.json"
        if given.part and name not in given.part and not kept.is_file():
            continue
        if kept.is_file() and not given.fresh and name not in (given.part or ()):
            found[name] = json.loads(kept.read_text(encoding="utf-8"))
            continue
        print(f"edge: {name}", flush=True)
        began = time.monotonic()
        made = part(folder / name, given.quick)
        found[name] = {**made, "took_s": round(time.monotonic() - began, 1)}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found[name], indent=1) + "\n", encoding="utf-8")
    figures = [figure for part in found.values() for figure in part["figures"]]
    report = {
        "command": command.command("edge"),
        "quick": given.quick,
        "figures": figures,
        "parts": found,
    }
    command.write(report, given.out / "edge.json")
    rows = [
        (one["name"], f"{one['value']} {one['unit']}", one["target"], "yes" if one["met"] else "no")
        for one in figures
    ]
    show([Table("The device", ("figure", "value", "target", "met"), rows)], Console())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("edge", __doc__)
    parser.add_argument("--quick", action="store_true", help="a few frames of each arm")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; repeatable")
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    raise SystemExit(main())
