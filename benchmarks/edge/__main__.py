"""Measures a device: bytes and times on the link, its own cost, a long outage, a long run.

Needs root for network namespaces. Results of earlier runs of the same code are kept (`--fresh`
measures again).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from benchmarks import command
from benchmarks.edge.answer_times import answer_times
from benchmarks.edge.catch_up import catch_up
from benchmarks.edge.endurance import endurance
from benchmarks.edge.faults import faults
from benchmarks.edge.figures import not_run
from benchmarks.edge.fixed_camera import fixed_camera
from benchmarks.edge.objective import objective
from benchmarks.edge.own_cost import own_cost
from benchmarks.edge.stills import stills
from benchmarks.edge.without_torch import without_torch
from reference.report.parts import Table, show

Part: TypeAlias = Callable[[Path, bool], dict[str, Any]]
"""Measures into a folder, quickly or not; its result has `figures`."""
ALWAYS = ("faults",)
"""What reads the newest report of another command."""
_MET = {True: "yes", False: "no", None: "–"}


def plan(minutes: float) -> dict[str, tuple[Part, float]]:
    """The parts in the order of the figures: each with its approximate seconds."""
    return {
        "faults": (faults, 0),
        "answer_times": (answer_times, 900),
        "objective": (objective, 1200),
        "fixed_camera": (fixed_camera, 600),
        "stills": (stills, 600),
        "catch_up": (catch_up, 700),
        "own_cost": (own_cost, 150),
        "without_torch": (without_torch, 180),
        "endurance": (endurance(minutes), 60 * minutes + 60),
    }


def bench(given: argparse.Namespace) -> int:
    """Measure, write and print."""
    folder = given.out / "edge"
    found: dict[str, Any] = {}
    todo: dict[str, tuple[Part, float, Path]] = {}
    for name, (measure, seconds) in plan(given.minutes).items():
        path = folder / f"{name}{'-quick' if given.quick else ''}.json"
        wanted = name in (given.part or ())
        kept = None if given.fresh or wanted or name in ALWAYS else command.kept(path)
        if kept is not None:
            found[name] = kept
        elif wanted or not given.part or name in ALWAYS:
            todo[name] = (measure, seconds / (8 if given.quick else 1), path)
    left_s = sum(seconds for _, seconds, _ in todo.values())
    for number, (name, (measure, seconds, path)) in enumerate(todo.items(), 1):
        print(
            f"edge: part {number} of {len(todo)}, {name}; about {left_s / 60:.0f} minutes to go",
            flush=True,
        )
        began = time.monotonic()
        made = measure(folder / name, given.quick)
        found[name] = command.keep(made, path, time.monotonic() - began)
        left_s -= seconds
    figures: list[dict[str, Any]] = []
    for name in plan(given.minutes):
        part = found.get(name, {})
        why = part.get("skipped", f"make bench-edge, or --part {name}")
        figures += part.get("figures") or [not_run(name, "", "", f"not run: {why}")]
    report = {
        "command": command.command("edge"),
        "quick": given.quick,
        "figures": figures,
        "parts": found,
    }
    command.write(report, given.out / "edge.json")
    rows = [(one["name"], _value(one), one["target"], _MET[one["met"]]) for one in figures]
    show([Table("The device", ("figure", "value", "target", "met"), rows)], Console())
    return 0


def _value(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return str(figure.get("not_run", "none"))
    return f"{figure['value']} {figure['unit']}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("edge", __doc__)
    parser.add_argument("--quick", action="store_true", help="a few frames of each arm")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--part", choices=plan(0.0), action="append", help="only this; repeatable")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="length of the long run; default: %(default)s"
    )
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    raise SystemExit(main())
