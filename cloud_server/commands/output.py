"""Output of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from protos.process.console import printable

_GAP = "  "


def say(text: str) -> None:
    """Print one or more lines."""
    sys.stdout.write(text + "\n")


def as_json(value: object) -> None:
    """Print a value as JSON; sets are sorted, an infinite time is null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def told(in_json: bool, value: object, text: str) -> None:
    """Print the result of a command, in JSON or as a sentence."""
    if in_json:
        as_json(value)
    else:
        say(text)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Print a table; on a terminal its last column is cut where the line would wrap.

    Args:
        heads: the columns' heads.
        rows: one cell for each column; None is shown as `-`.
        empty: printed if there are no rows.
    """
    if not rows:
        say(empty)
        return
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for row in ([head.upper() for head in heads], *cells):
        line = _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line = line.rstrip()
        say(line[: most - 1] + "…" if most and len(line) > most else line)


def facts(pairs: Mapping[str, object]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        say(f"{name.ljust(width)}{_GAP}{_cell(value)}")


def moment(at_s: float | None) -> str | None:
    """A time as text, in UTC; None for never."""
    if at_s is None or math.isinf(at_s):
        return None
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e15 else str(value)
    return printable(value)


def _plain(value: object) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(_plain(one) for one in value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
