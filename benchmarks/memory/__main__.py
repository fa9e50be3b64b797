"""Long memory on a real pair: SmolLM2-135M makes the keys, a frozen Gemma 3 270M answers.

What the models make of a text, and the parts that the same code measured, are kept; `--fresh`
measures again. Words of the test are in nothing that is fitted or chosen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from benchmarks import command
from benchmarks.edge.figures import not_run
from benchmarks.memory import parts
from benchmarks.memory.choose import choose, read_choice
from benchmarks.memory.setting import Choice, RealPair
from benchmarks.real_pair.install import FOLDER
from projector.models.autocast import quick_kernels
from reference.report.parts import Table, show

Part: TypeAlias = Callable[[RealPair, Choice, bool], dict[str, Any]]
PARTS: dict[str, Part] = {
    "told": parts.told,
    "many_tokens": parts.many_tokens,
    "newest": parts.newest,
    "gate": parts.gate,
    "locality": parts.locality,
    "cost": parts.cost,
    "stream": parts.stream,
    "sites": parts.sites,
}
MISSING = (
    ("against LoRA-SFT at equal bytes, paraphrases", "better", "points"),
    ("against LoRA-SFT, floating-point operations per fact", "≥ 1000", "times less"),
    ("gap to the text in the prompt", "reported", "points"),
    ("`learned` against least squares under drift", "within 2 at ≤ 1/4 of the state", "points"),
)
"""Rows that nothing measures yet."""
_MET = {True: "yes", False: "no", None: "–"}


def bench(given: argparse.Namespace) -> int:
    """Choose, measure, write and print."""
    quick_kernels()
    folder = given.out / "memory"
    pair = RealPair(given.models, folder)
    ending = "-quick.json" if given.quick else ".json"

    def part(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = folder / f"{name}{ending}"
        again = given.fresh or name in (given.part or ())
        known = None if again else command.kept(path)
        if known is not None:
            return known
        print(f"memory: {name}", flush=True)
        began = time.monotonic()
        return command.keep(measure(), path, time.monotonic() - began)

    chosen = part("choose", lambda: choose(pair, given.quick))
    choice = read_choice(chosen["choice"])
    found = {"choose": chosen}
    for name, measure in PARTS.items():
        if not given.part or name in given.part:
            found[name] = part(name, partial(measure, pair, choice, given.quick))
    figures = [figure for one in found.values() for figure in one.get("figures", ())]
    figures += [not_run(*row, "nothing measures it yet") for row in MISSING]
    rows = [{"part": name, **row} for name, one in found.items() for row in one.get("rows", ())]
    report = {
        "command": command.command("memory"),
        "quick": given.quick,
        "figures": figures,
        "rows": rows,
        "parts": found,
    }
    command.write(report, given.out / "memory.json")
    shown = [(one["name"], str(one["value"]), one["target"], _MET[one["met"]]) for one in figures]
    show([Table("Long memory", ("figure", "value", "target", "met"), shown)], Console())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("memory", __doc__)
    parser.add_argument("--models", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; repeatable")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer facts")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
