"""Measures the service under load: throughput, latency, fairness, overload, memory, and rivals.

Simulated devices in one process send frames of test pictures to a service in other processes on the
same machine. Results of earlier runs of the same code are kept (`--fresh` measures again).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import command
from benchmarks.serve import parts
from benchmarks.serve.figures import figures, read_faults
from benchmarks.serve.identities import Identities
from benchmarks.serve.pool import pool
from reference.report.parts import html, show

FAULTS = command.ROOT / "build" / "faults.json"


def plan(minutes: float) -> list[tuple[str, parts.Part, float]]:
    """The parts in order: name, function, approximate seconds."""
    return [
        ("throughput", parts.on_site(parts.throughput), 75),
        ("all_cores", parts.on_site(parts.all_cores, *parts.EACH_CORE), 40),
        ("transformers", parts.transformers, 40),
        ("front_end", parts.front_end, 80),
        ("offered", parts.on_site(parts.offered, *parts.IMPATIENT), 130),
        ("devices", parts.on_site(parts.devices), 110),
        ("fairness", parts.on_site(parts.fairness), 100),
        ("http", parts.on_site(parts.http), 30),
        ("soak", parts.steady(minutes), 60 * minutes + 20),
    ]


def measure(out: Path, quick: bool, fresh: bool, minutes: float, only: Sequence[str]) -> Any:
    """Measure every part without a kept result; returns all results by name."""
    folder = out / "serve"
    known = folder / "directory"
    shutil.rmtree(known, ignore_errors=True)
    identities = Identities.make(known, max(parts.DEVICES))
    bench = parts.Workbench(folder, pool(folder), quick, identities)
    found: dict[str, Any] = {}
    todo = []
    for name, part, seconds in plan(minutes):
        path = folder / f"{name}{'-quick' if quick else ''}.json"
        known_part = None if fresh or name in only else command.kept(path)
        if known_part is not None:
            found[name] = known_part
        elif not only or name in only:
            todo.append((name, part, path, seconds / (4 if quick and name != "soak" else 1)))
    left = sum(seconds for *_, seconds in todo)
    for number, (name, part, path, seconds) in enumerate(todo, 1):
        print(
            f"serve: part {number} of {len(todo)}, {name}; about {left / 60:.1f} minutes to go",
            flush=True,
        )
        began = time.monotonic()
        found[name] = command.keep(part(bench, found), path, time.monotonic() - began)
        left -= seconds
    return found


def bench(given: argparse.Namespace) -> int:
    """Measure, write and print; returns 1 if a ledger's verdict is bad."""
    minutes = given.minutes if given.minutes is not None else 0.5 if given.quick else 30.0
    measured = measure(given.out, given.quick, given.fresh, minutes, given.part or ())
    report = {
        "command": command.command("serve"),
        "quick": given.quick,
        "cores": len(os.sched_getaffinity(0)),
        "figures": figures(measured, read_faults(FAULTS)),
        "parts": measured,
    }
    from benchmarks.serve.page import figures_table, parts_of

    lead = (
        "Simulated devices with real frames against the reference service; generator, front end "
        f"and engine share {report['cores']} cores of one machine. `{report['command']}`"
    )
    page = html("the service under load", lead, parts_of(report))
    command.write(report, given.out / "serve.json", page)
    show([figures_table(report["figures"])], Console())
    broken = [name for name, part in measured.items() if not part.get("holds", True)]
    for name in broken:
        print(f"serve: {name}: {measured[name]['verdict']}")
    return 1 if broken else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("serve", __doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds for each point")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument(
        "--minutes", type=float, help="length of the soak (default: 30; with --quick 0.5)"
    )
    names = [name for name, *_ in plan(0)]
    parser.add_argument("--part", choices=names, action="append", help="only this part; repeatable")
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
