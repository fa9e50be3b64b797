"""`make bench-hub`: how few pictures an edge model needs to join a hub, and what it costs.

Halves are fitted to training pictures; accuracy is measured on the test split and the shifted one.
Finished figures are kept in `--work`, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks import command
from benchmarks.hub import page
from benchmarks.hub.arms import arms
from benchmarks.hub.figures import figures, share
from benchmarks.hub.yard import Yard
from benchmarks.projectors.journal import Journal
from reference.report.parts import show

GROUPS = ("same", "other", "shift", "service")


def _bench(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    yard = Yard(args.work, args.pictures, args.shifted, args.threads)
    journal = Journal(args.work / "journal.jsonl", args.fresh)
    asked = args.parts or GROUPS
    found: dict[tuple[Any, ...], Any] = {}
    for group, these in arms(yard).items():
        if group not in asked:
            for key, _ in these:
                if journal.has(key):
                    found[tuple(key)] = journal.get(key, dict)
            continue
        for key, make in tqdm(these, desc=f"hub: {group}", unit="arm"):
            found[tuple(key)] = journal.get(key, make)
    report = {
        "command": command.command("hub"),
        "pictures": args.pictures,
        "shifted": args.shifted,
        "minutes": round(journal.seconds / 60, 1),
        "figures": figures(found),
        "rows": [_row(key, value) for key, value in found.items()],
    }
    command.write(report, args.out, page.page(report))
    show(page.tables(report), Console())
    return 0


def _row(key: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """An arm with its accuracy instead of single answers."""
    row: dict[str, Any] = {"arm": list(key)}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return row | {"points": [_point(one) for one in value]}
    if isinstance(value, list) and all(isinstance(one, int) for one in value):
        return row | {"accuracy": round(share(value), 5), "questions": len(value)}
    if isinstance(value, dict) and "right" in value:
        told = {"accuracy": round(share(value["right"]), 5), "seconds": value["seconds"]}
        return row | told | {"points": [_point(one) for one in value["points"]]}
    if isinstance(value, dict) and "native" in value:
        return row | {name: round(share(right), 5) for name, right in value.items()}
    return row | {"value": value}


def _point(one: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in one.items() if name != "right"}
    return rest | {"accuracy": round(share(one["right"]), 5)}


def main() -> int:
    """Command line."""
    parser = command.parser("hub", __doc__)
    parser.add_argument("--out", type=Path, default=command.REPORTS / "hub.json")
    parser.add_argument("--work", type=Path, default=command.REPORTS / "hub-work")
    parser.add_argument("--pictures", type=int, default=256, help="test pictures; at most 1,024")
    parser.add_argument("--shifted", type=int, default=128, help="shifted pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=GROUPS, help="measure these alone")
    parser.add_argument("--fresh", action="store_true", help="forget figures of earlier runs")
    return command.run(parser, _bench)


if __name__ == "__main__":
    sys.exit(main())
