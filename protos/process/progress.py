"""Progress of a long job, on standard error: a bar on a terminal, else a line now and then.

If standard error is closed or full the report is lost, but the job goes on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from protos.process import console

FIRST_S, EVERY_S = 2.0, 30.0
"""Seconds until the first line, and between lines after it."""

T = TypeVar("T")


def on_terminal() -> bool:
    """Whether somebody watches standard error."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False


def note(text: str) -> None:
    """Write a line to standard error, if there is one."""
    console.say(text)


class Progress:
    """A job of known length; a context manager.

    Args:
        what: the job's name.
        total: its length.
        unit: what is counted, in the singular.
        shown: false if another process reports.
        clock: seconds.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "step",
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self._before = 0
        self._shown, self._clock, self._begun = shown, clock, clock()
        self._next_s, self._told, self._bar = FIRST_S, False, None
        if shown and on_terminal():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._on_bar(lambda bar: bar.close())
        if self._told and kind is None:
            note(f"{self.what}: {self._count()} in {span(self._clock() - self._begun)}")

    def advance(self, count: int = 1) -> None:
        """Count this many more as done."""
        self.done += count
        self._on_bar(lambda bar: bar.update(count))
        spent = self._clock() - self._begun
        if self._shown and self._bar is None and spent >= self._next_s and not on_terminal():
            self._told, self._next_s = True, spent + EVERY_S
            note(self.line())

    def skip(self, count: int) -> None:
        """Count this many as done by an earlier run; the time estimate ignores them."""
        self.done += count
        self._before += count

        def moved(bar: Any) -> None:
            bar.initial += count
            bar.update(count)

        self._on_bar(moved)

    def line(self) -> str:
        """How far the job is, and about how long it still takes."""
        share = f", {100 * self.done / self.total:.0f} %" if self.total else ""
        fresh = self.done - self._before
        left = (self._clock() - self._begun) / fresh * (self.total - self.done) if fresh else None
        ahead = "" if left is None else f", about {span(left)} left"
        return f"{self.what}: {self._count()}{share}{ahead}"

    def _count(self) -> str:
        plural = "" if self.total == 1 else "es" if self.unit.endswith("s") else "s"
        return f"{self.done:,} of {self.total:,} {self.unit}{plural}"

    def _on_bar(self, do: Callable[[Any], object]) -> None:
        if self._bar is None:
            return
        try:
            do(self._bar)
        except (OSError, ValueError):  # the terminal is gone
            self._bar.disable, self._bar, self._shown = True, None, False


def track(every: Sequence[T], what: str, unit: str = "step") -> Iterator[T]:
    """The items of a sequence, each counted when the next one is asked for."""
    with Progress(what, len(every), unit) as progress:
        for one in every:
            yield one
            progress.advance()


class Waiting:
    """Reports how long a job of unknown length has taken so far; a context manager.

    On a terminal one line, which is removed when the job ends; elsewhere a line after two seconds,
    then one every half minute.
    """

    def __init__(self, what: str) -> None:
        self._what, self._over = what, threading.Event()
        self._shows = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Waiting:
        self._begun = time.monotonic()
        self._shows.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._shows.join()

    def _show(self) -> None:
        watched = on_terminal()
        if self._over.wait(1.0 if watched else FIRST_S):
            return
        if not watched:
            note(self._what)
        while not self._over.wait(1.0 if watched else EVERY_S):
            spent = span(time.monotonic() - self._begun)
            if watched:
                _write(f"\r\x1b[2K{self._what} … {spent}")
            else:
                note(f"{self._what}: {spent} so far")
        if watched:
            _write("\r\x1b[2K")


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, ValueError, OSError):  # none, closed, or its reader is gone
        return


def span(seconds: float) -> str:
    """A stretch of time as people say it: "40 s", "3 min 20 s", "2 h 5 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
