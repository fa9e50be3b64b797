"""Flags and models of the commands of `projector hub` that run models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projector.commands.arguments import Run, add_command
from projector.commands.settings import check, settings_of
from projector.models.foreign import importing
from projector.report import tables
from protos.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from projector.models.vlm import VLM

_SETTINGS = ("target", "device", "max_picture_pixels", "threads")


def add_hub_command(
    commands: Any, name: str, text: str, run: Run, *examples: str, edge: bool = True
) -> argparse.ArgumentParser:
    """Add a command that runs the hub's large model and, by default, an edge model."""

    def on_models(args: argparse.Namespace) -> int:
        chosen = settings_of(args)
        if args.check_config:
            return check(chosen)
        for setting in _SETTINGS:
            setattr(args, setting, getattr(chosen, setting))
        return run(args)

    parser = add_command(commands, name, text, on_models, _SETTINGS, examples)
    if edge:
        parser.add_argument(
            "--edge", type=Path, required=True, metavar="MODEL", help="the small model's checkpoint"
        )
    return parser


def open_vlms(args: argparse.Namespace, *paths: Path) -> list[VLM]:
    """Load vision-language models from their checkpoints.

    Raises:
        ConfigError: a text-only model, which sees no pictures.
        ModelError: a folder is no checkpoint.
    """
    for path in paths:
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no config.json: it is not a checkpoint")
    with importing("running a model"):
        import torch
        from transformers.utils import logging

        from projector.models.lm import reads_only_texts
        from projector.models.vlm import VLM
        from projector.training import distributed
    logging.disable_progress_bar()
    tables.threads(args.threads, torch.set_num_threads)
    for path in paths:
        if reads_only_texts(path):
            raise ConfigError(f"{path} reads only texts: a hub is of models that see pictures")
    with tables.doing(f"loading {', '.join(map(str, paths))}"):
        device = distributed.device(args.device)
        return [VLM.load(path, device) for path in paths]


def target_of(args: argparse.Namespace) -> Path:
    """The large model's checkpoint.

    Raises:
        ConfigError: it is not named.
    """
    if args.target is None:
        raise ConfigError("no large model: give --target DIRECTORY")
    path: Path = args.target
    return path
