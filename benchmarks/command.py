"""Shared by all benchmark commands: where reports go, how they are written, exit codes."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from protos.errors import BridgeError
from reference.demo.processes import ChildError

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "build" / "bench"


def run(
    parser: argparse.ArgumentParser,
    bench: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, measure, and turn a `BridgeError` into one line and its exit code."""
    given = parser.parse_args(argv)
    try:
        return bench(given)
    except (BridgeError, ChildError) as error:
        name = f"{error.name}: " if isinstance(error, BridgeError) else ""
        print(f"{parser.prog.rpartition('.')[2]}: {name}{error}", file=sys.stderr)
        return error.exit_code if isinstance(error, BridgeError) else 1


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A command line of `python -m benchmarks.NAME`."""
    return argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)


def command(name: str) -> str:
    """The command line that gives the same report again."""
    return " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]])


@functools.cache
def code() -> str:
    """Names the code that measures: changes with each change of it; empty without git."""
    told = hashlib.sha256()
    for ask in (("log", "-1", "--format=%H"), ("diff", "HEAD")):
        git = ["git", *ask, "--", "*.py", "*.toml", ":!tests"]
        try:
            told.update(subprocess.run(git, cwd=ROOT, capture_output=True, check=True).stdout)
        except (OSError, subprocess.CalledProcessError):
            return ""
    return told.hexdigest()[:16]


def kept(path: Path) -> dict[str, Any] | None:
    """A part's result of an earlier run; None if there is none, or other code measured it."""
    if not path.is_file():
        return None
    part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return part if part.get("code", "") == code() else None


def keep(part: Mapping[str, Any], path: Path, seconds: float) -> dict[str, Any]:
    """Write a part's result for later runs; returns it with what measured it and how long."""
    whole = {**part, "took_s": round(seconds, 1), "code": code()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return whole


def write(report: Mapping[str, Any], path: Path, page: str = "") -> None:
    """Write a report as JSON and, if there is one, its page beside it; say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if page:
        path.with_suffix(".html").write_text(page, encoding="utf-8")
    print(f"wrote {path}" + (f" and {path.with_suffix('.html')}" if page else ""))
