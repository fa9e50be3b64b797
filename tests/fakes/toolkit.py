"""What tests of `projector`'s commands share: a folder to ask about, the commands, exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from projector.commands import cli
from projector.training.dataset import write_questions
from protos.errors import ERRORS
from tests.fakes.tiny_models import picture

WORDS = ("red", "blue", "one", "two")
QUESTIONS = 6
"""About each picture."""


def pictures_with_questions(folder: Path, count: int, first: int = 0) -> list[str]:
    """Writes so many pictures and questions about them into a folder; returns their names."""
    names = [f"{index:03d}.png" for index in range(first, first + count)]
    rows: list[dict[str, object]] = []
    for index, name in enumerate(names, start=first):
        picture(index).save(folder / name)
        rows += [
            {"picture": name, "question": f"what is {k}", "answer": WORDS[(index + k) % 4]}
            for k in range(QUESTIONS)
        ]
    write_questions(folder, rows)
    return names


def toolkit(models: tuple[Path, Path]) -> Callable[..., int]:
    """Runs `projector COMMAND ARGUMENTS` between two models on one thread."""
    pair = ["--source", str(models[0]), "--target", str(models[1]), "--threads", "1"]

    def run(*arguments: object) -> int:
        return cli.main([*map(str, arguments), *pair])

    return run


def code_of(name: str) -> int:
    """The exit code of the error of that name."""
    return next(kind.exit_code for kind in ERRORS.values() if kind.name == name)
