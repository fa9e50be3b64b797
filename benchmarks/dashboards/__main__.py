"""Writes `deploy/monitoring/grafana/dashboards/*.json`, and the panels' list in the documentation.

`python -m benchmarks.dashboards` writes them; with `--check` it changes nothing and ends with 1 if
a file is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command, docs
from benchmarks.dashboards import boards

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring" / "grafana" / "dashboards"


def make(given: argparse.Namespace) -> int:
    """Write the files, or compare them."""
    folder: Path = given.folder
    wanted = {folder / f"{one.name}.json": one.to_json() for one in boards.ALL}
    extra = sorted(set(folder.glob("*.json")) - set(wanted))
    page: Path = given.page
    wanted[page] = docs.placed(page.read_text(encoding="utf-8"), "dashboards", listed())
    stale = extra + [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if given.check:
        if stale:
            names = ", ".join(path.name for path in stale)
            print(f"out of date: {names}: run 'python -m benchmarks.dashboards'", file=sys.stderr)
        return 1 if stale else 0
    folder.mkdir(parents=True, exist_ok=True)
    for path in extra:
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
        print(f"dashboards: {path}")
    return 0


def listed() -> str:
    """Every panel with what normal looks like, as Markdown."""
    lines = []
    for board in boards.ALL:
        lines += ["", f"| *{board.title}* | Normal, and what else it may mean |", "|---|---|"]
        for title, panels in board.all_rows.items():
            lines.append(f"| **{title}** | |")
            lines += [f"| {panel.title} | {panel.normal} |" for panel in panels]
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("dashboards", "Write Grafana's dashboards.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--page", type=Path, default=docs.DOCS / "dashboards.md")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    return command.run(parser, make, argv)


if __name__ == "__main__":
    raise SystemExit(main())
