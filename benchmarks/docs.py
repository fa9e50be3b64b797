"""Writes measured tables into documents, between two marker lines.

`python -m benchmarks.NAME` writes; with `--check` it changes nothing and ends with 1 if a document
does not say what the report says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import command

END = "<!-- /results -->"
NOTHING = "not measured"
README = command.ROOT / "README.md"
DOCS = command.ROOT / "docs"


def begin(name: str) -> str:
    """The line before the table that `python -m benchmarks.NAME` writes."""
    return f"<!-- results: python -m benchmarks.{name} -->"


def placed(document: str, name: str, table: str) -> str:
    """A document with the table between its markers.

    Raises:
        ValueError: the markers are missing.
    """
    before, found, rest = document.partition(begin(name))
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"the document lacks the lines {begin(name)!r} and {END!r}")
    return f"{before}{begin(name)}\n{table}\n{END}{after}"


def main(
    name: str,
    make: Callable[[argparse.Namespace], Mapping[Path, str]],
    measured_by: str,
    **paths: Path,
) -> int:
    """Command line.

    Args:
        name: name of the module.
        make: takes the flags, returns each file's content: for Markdown the table between its
            markers, for another file (a plot) the whole file.
        measured_by: the target of `make` that writes the report.
        paths: flags with their defaults.
    """
    parser = command.parser(name, "Write measured figures into the documents.")
    for flag, default in paths.items():
        parser.add_argument(f"--{flag}", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    given = parser.parse_args()
    try:
        made = dict(make(given))
    except FileNotFoundError as error:
        lack = f"{error.filename} is not there: run `make {measured_by}` first"
        print(f"{name}: {lack}", file=sys.stderr)
        return 1
    for path, text in made.items():
        if path.suffix == ".md":
            made[path] = placed(path.read_text(encoding="utf-8"), name, text)
    if given.check:
        stale = [p for p, t in made.items() if p.suffix == ".md" and p.read_text("utf-8") != t]
        for path in stale:
            print(f"{name}: {path.name} is not up to date", file=sys.stderr)
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0
