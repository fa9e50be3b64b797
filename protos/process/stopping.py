"""Stopping a long job with SIGINT or SIGTERM: it ends its step, saves its state and exits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_ASKS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """The job has saved its state and exits; the exit code is the shell's for that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Stopping:
    """Notes the first SIGINT or SIGTERM; a second one ends the process at once.

    A context manager; outside of the main thread, where no signal arrives, it does nothing.

    Attributes:
        asked: the signal that came, 0 for none yet.
    """

    def __init__(self, patient: bool = False) -> None:
        """Install nothing yet; `with` does.

        Args:
            patient: ignore a second signal: a launcher such as torchrun repeats the signal that
                the terminal has already sent.
        """
        self.asked = 0
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _ASKS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While files are written, a second signal raises `Stopped`, so that drafts are removed."""
        if not (self.asked and self._before) or self._patient:
            yield
            return
        for number in _ASKS:
            signal.signal(number, _leave)
        yield

    def _note(self, number: int, _: FrameType | None) -> None:
        self.asked = self.asked or number
        if (
            not self._patient
        ):  # the interpreter may be busy in a long product: leave it to the system
            for each in _ASKS:
                signal.signal(each, signal.SIG_DFL)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)
