"""How far a job is: counted in what people count, sparse off a terminal, never in the job's way."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from protos.process import progress
from protos.process.progress import Progress, span, track


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_off_a_terminal_lines_are_sparse_and_say_what_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress("corpus", 1000, "picture", clock=clock) as shown:
        shown.skip(200)  # an earlier run's: they took this one no time
        for _ in range(80):
            clock.now += 1.0
            shown.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "corpus: 220 of 1,000 pictures, 22 %, about 1 min 18 s left"
    assert lines[-1] == "corpus: 1,000 of 1,000 pictures in 1 min 20 s"
    assert len(lines) == 4, "one after 2 seconds, then one every 30, and the end"


def test_a_quick_job_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("quick", 3, clock=clock) as shown:
        for _ in range(3):
            clock.now += 0.5
            shown.advance()
    assert list(track("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress("corpus", 4, "picture") as shown:
        for _ in range(4):
            shown.advance()
    assert "corpus: 100%" in screen.getvalue() and "picture/s" in screen.getvalue()


class Gone(Terminal):
    """A terminal that goes away."""

    broken = False

    def write(self, text: str) -> int:
        if self.broken:
            raise BrokenPipeError
        return super().write(text)


def test_a_standard_error_that_goes_away_never_ends_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stream in (None, Gone(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        clock, done = Clock(), 0
        with Progress("job", 50, clock=clock) as shown:
            if isinstance(stream, Gone):
                stream.broken = True
            elif stream is not None:
                stream.close()
            for _ in range(50):
                clock.now += 3.0
                shown.advance()
                done += 1
        progress.note("no reader")
        assert done == 50


def test_what_takes_long_without_a_known_length_says_so_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    with progress.Waiting("loading a model"):
        while not (told := capsys.readouterr().err):
            pass
    assert told == "loading a model\n"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_stretches_of_time_are_said_as_people_do(seconds: Any, said: str) -> None:
    assert span(seconds) == said
