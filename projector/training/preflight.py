"""Checks what a long command needs before its first step. Loads no model, imports no torch."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protos.errors import ConfigError, DiskFullError, ModelError

if TYPE_CHECKING:
    from projector.training.dataset import Dataset


def models(args: argparse.Namespace) -> None:
    """Check that both models are named and are checkpoints.

    Raises:
        ConfigError: one is not named.
        ModelError: one is no checkpoint's folder.
    """
    for side in ("source", "target"):
        path: Path | None = getattr(args, side)
        if path is None:
            raise ConfigError(f"no {side} model: give --{side} DIRECTORY")
        if not (path / "config.json").is_file():
            raise ModelError(f"--{side} {path} holds no config.json: it is not a checkpoint")


def writable(path: Path) -> None:
    """Check that a folder, or one that will be made, can be written to.

    Raises:
        ConfigError: a file is in its way, or it may not be written.
    """
    there = path.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"cannot write to {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to {path}: {there} may not be written by this user")


def room(folder: Path, size: int, what: str) -> None:
    """Check that a folder's file system has room.

    Args:
        folder: made if need be.
        size: bytes that will be written.
        what: name of what is written, for the message.

    Raises:
        DiskFullError: it has no room.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if size > free:
        raise DiskFullError(
            f"{what} takes {_megabytes(size)} in {folder}, where {_megabytes(free)} are free"
        )


def asked(data: Dataset, inputs: Sequence[int], why: str) -> None:
    """Check that each of some inputs has questions.

    Args:
        data: pictures or texts.
        inputs: their indices.
        why: what needs the questions; the message begins with it.

    Raises:
        ConfigError: one of them has no question.
    """
    from projector.training.dataset import QUESTIONS

    without = [index for index in inputs if not data.asked(index)]
    if not without:
        return
    path = data.folder / QUESTIONS
    if not path.is_file():
        raise ConfigError(
            f"{why} needs questions to every {data.unit}, and there is no {path}: write it, or go "
            "without"
        )
    raise ConfigError(
        f"{why} needs questions to every {data.unit}, and {path} asks nothing about "
        f"{len(without)} of {len(inputs)}, such as {data.files[without[0]].name}: add some, or "
        "go without"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 10_000_000_000 else f"{size / 1e9:,.1f} GB"
