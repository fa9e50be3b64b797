"""Progress of the demo and the benchmarks on a terminal, and the command line that they share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]


class Terminal:
    """Progress on a console: bars where there is a terminal, one line per stage elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, style="dim", highlight=False, soft_wrap=True, markup=False)

    def fail(self, text: str) -> None:
        """Print what went wrong."""
        self.console.print(text, style="red", highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def stage(self, text: str, total: int) -> Iterator[Advance]:
        """A bar of `total` units; the block gets a function that advances it."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )
        with bar:
            task = bar.add_task(f"{text:<38}", total=total)
            yield lambda units: bar.advance(task, units)


def arguments(
    description: str, out: Path, pictures: int, edge: Path, cloud: Path, bundle: Path
) -> argparse.ArgumentParser:
    """Flags for what is asked about, between which models, and where the report goes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pictures", type=int, default=pictures, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=out, help="folder; default: %(default)s")
    parser.add_argument("--edge", type=Path, default=edge, help="checkpoint of the edge model")
    parser.add_argument("--cloud", type=Path, default=cloud, help="checkpoint of the cloud model")
    parser.add_argument("--bundle", type=Path, default=bundle, help="bundle between them")
    return parser


def short(path: Path) -> str:
    """A path as seen from the working directory, where it lies under it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
