"""Output of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from protos.errors import ConfigError
from protos.process.console import printable

_GAP = "  "
_BELOW: Any = {
    "initial_indent": "    ",
    "subsequent_indent": "    ",
    "break_long_words": False,
    "break_on_hyphens": False,
}


def say(text: str) -> None:
    """Print one or more lines."""
    sys.stdout.write(text + "\n")


def as_json(value: object) -> None:
    """Print a value as JSON; sets are sorted, an infinite time is null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def agreed(yes: bool, question: str) -> None:
    """Ask on a terminal before something that cannot be undone; a script is not asked.

    Args:
        yes: whether `--yes` was given.
        question: what is about to happen, without a question mark.

    Raises:
        ConfigError: the answer is not yes.
    """
    if yes or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    sys.stdout.write(f"{question}? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was changed: answer y, or give --yes")


def told(in_json: bool, value: object, text: str) -> None:
    """Print the result of a command, in JSON or as a sentence."""
    if in_json:
        as_json(value)
    else:
        say(text)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[object]], empty: str, *, below: bool = False
) -> None:
    """Print a table; on a terminal its widest columns are shortened until its lines fit.

    Args:
        heads: the columns' heads; a head may have two lines.
        rows: one cell for each column; None is shown as `-`.
        empty: printed if there are no rows.
        below: whether each row has one cell more, a text that is printed below it.
    """
    if not rows:
        say(empty)
        return
    cells = [[_cell(value) for value in row[: len(heads)]] for row in rows]
    stacked = [head.upper().split("\n") for head in heads]
    tall = max(map(len, stacked))
    titles = [list(line) for line in zip(*(["", *head][-tall:] for head in stacked), strict=True)]
    widths = [max(map(len, column)) for column in zip(*titles, *cells, strict=True)]
    if sys.stdout.isatty():
        _narrow(widths, shutil.get_terminal_size().columns)
    for title in titles:
        say(_line(title, widths))
    for row, shown in zip(rows, cells, strict=True):
        say(_line(shown, widths))
        if below and row[-1]:
            say(textwrap.fill(_cell(row[-1]), _width(), **_BELOW))


def _narrow(widths: list[int], most: int) -> None:
    """Make the widest columns narrower until a line of the table fits."""
    while sum(widths) + len(_GAP) * (len(widths) - 1) > most and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    short = (
        cell if len(cell) <= width else f"{cell[: width - 1]}…"
        for cell, width in zip(cells, widths, strict=True)
    )
    line = _GAP.join(cell.ljust(width) for cell, width in zip(short, widths, strict=True))
    return line.rstrip()


def _width() -> int:
    """Columns of the terminal; 80 in a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80


def facts(pairs: Mapping[str, object]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        say(f"{name.ljust(width)}{_GAP}{_cell(value)}")


def minute(at_s: float | None) -> str | None:
    """A time as text without its seconds, in UTC; None for never."""
    full = moment(at_s)
    return None if full is None else full[:-3]


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
