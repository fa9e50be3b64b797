"""Tables and progress on a terminal. rich is imported only when a table is made."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from protos.errors import ConfigError
from protos.process import console
from protos.process.console import printable
from protos.process.progress import Progress, Waiting
from protos.process.threads import use

_PIPED_COLUMNS = 120


@contextlib.contextmanager
def doing(what: str, total: int = 0, unit: str = "picture") -> Iterator[Callable[[int], None]]:
    """Show on standard error what is running, and how far it is if `total` is given.

    Yields:
        A function to call with how many more are done.
    """
    if total:
        with Progress(printable(what), total, unit) as progress:
            yield progress.advance
    else:
        with Waiting(printable(what)):
            yield lambda _: None


def threads(wanted: int, *setters: Callable[[int], object]) -> None:
    """Choose the CPU threads (`protos.process.threads.use`); say so on a terminal.

    A setting above the number of CPUs gives a warning, on a terminal or not.
    """
    chosen = use(wanted, *setters)
    if chosen.warning:
        console.say(f"projector: warning: {chosen.warning}")
    elif sys.stderr.isatty():
        console.say(f"projector: CPU threads: {chosen.count} ({chosen.share.because})")


def _console(stderr: bool = False) -> Any:
    try:
        from rich.console import Console
    except ImportError as error:
        raise ConfigError(
            "tables need rich: pip install 'neural-bridge[align]', or use --json"
        ) from error
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        width=None if stream.isatty() else _PIPED_COLUMNS,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_tables(tables: Sequence[Any]) -> None:
    """Print tables that `table` made."""
    console = _console()
    for one in tables:
        console.print(one)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Any:
    """A table; a column whose name starts with `#` holds numbers and is set to the right."""
    _console()
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=printable(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        show_header=any(columns),
    )
    for name in columns:
        made.add_column(
            name.removeprefix("#"),
            justify="right" if name.startswith("#") else "left",
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made
