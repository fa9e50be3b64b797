"""Measures what the service tells about itself: is it right, what it costs, how soon one sees it.

Results of earlier runs are kept (`--fresh` measures again).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from benchmarks import command
from benchmarks.observe.cost import cost
from benchmarks.observe.fresh_machine import fresh_machine
from benchmarks.observe.live_page import live_page
from benchmarks.observe.others import REPORTS, of_report
from benchmarks.observe.recorded import recorded
from benchmarks.observe.scrape import scrape
from reference.report.parts import Table, show

Part: TypeAlias = Callable[[Path, bool], dict[str, Any]]
"""Measures into a folder, quickly or not; its result has `figures`."""
_MET = {True: "yes", False: "no", None: "–"}


def plan() -> dict[str, tuple[Part, float]]:
    """The parts in the order of the figures: each with its approximate seconds."""
    return {
        "recorded": (recorded, 60),
        "cost": (cost, 240),
        "scrape": (scrape, 10),
        "live_page": (live_page, 120),
        "fresh_machine": (fresh_machine, 400),
        **{row: (of_report(row), 0.0) for row in REPORTS},
    }


def bench(given: argparse.Namespace) -> int:
    """Measure, write and print."""
    folder = given.out / "observe"
    found: dict[str, Any] = {}
    wanted = {name: part for name, part in plan().items() if name in (given.part or plan())}
    left_s = sum(seconds for _, seconds in wanted.values()) / (8 if given.quick else 1)
    for name, (measure, seconds) in plan().items():
        kept = folder / f"{name}{'-quick' if given.quick else ''}.json"
        again = given.fresh or name in (given.part or ()) or not seconds
        known = None if again else command.kept(kept)
        if known is not None:
            found[name] = known
            continue
        if name not in wanted:
            continue
        if seconds:
            print(f"observe: {name}; about {left_s / 60:.0f} minutes to go", flush=True)
        began = time.monotonic()
        made = measure(folder / name, given.quick)
        found[name] = command.keep(made, kept, time.monotonic() - began) if seconds else made
        left_s -= seconds / (8 if given.quick else 1)
    figures = [figure for name in plan() for figure in found.get(name, {}).get("figures", ())]
    report = {
        "command": command.command("observe"),
        "quick": given.quick,
        "figures": figures,
        "parts": found,
    }
    command.write(report, given.out / "observe.json")
    rows = [(one["name"], _value(one), one["target"], _MET[one["met"]]) for one in figures]
    show([Table("What the service tells", ("figure", "value", "target", "met"), rows)], Console())
    return 0


def _value(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return f"not run: {figure.get('not_run', '')}"
    return f"{figure['value']} {figure['unit']}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("observe", __doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds of each")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--part", choices=plan(), action="append", help="only this; repeatable")
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    raise SystemExit(main())
