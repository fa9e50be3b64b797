"""What `projector head train` and `test` share: their inputs, and the line they print."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projector.commands.inputs import open_corpus
from projector.commands.models import open_models
from protos.errors import ConfigError

if TYPE_CHECKING:
    from projector.heads.views import FrozenMap
    from projector.training.corpus import Corpus
    from projector.training.dataset import Dataset


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add MAP, DATA, CORPUS and --point."""
    parser.add_argument("map", type=Path, metavar="MAP", help="what `train` wrote, or a bundle")
    parser.add_argument("data", type=Path, metavar="DATA", help="pictures and labels.jsonl")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="what `corpus` made of them")
    parser.add_argument(
        "--point", help="operating point of a bundle; default: latents that are not quantized"
    )


def open_inputs(args: argparse.Namespace, data: Dataset) -> tuple[Corpus, FrozenMap]:
    """The pairs, and the map or bundle below the head.

    Raises:
        ConfigError: the folder holds texts.
    """
    from projector.heads.views import FrozenMap
    from projector.training.dataset import Texts

    if isinstance(data, Texts):
        raise ConfigError(f"heads read pictures, and {args.data} holds texts")
    source, target = open_models(args, data)
    frozen = FrozenMap.open(args.map, source.layout, target.layout, args.point)
    return open_corpus(data, source, target, args.corpus), frozen


def in_a_line(figures: dict[str, Any]) -> str:
    """One line: the accuracy with its interval, and the baselines that need no head."""
    from projector.training.dataset import LEAST_QUESTIONS

    def percent(name: str) -> str:
        return f"{100 * figures[name]['mean']:.1f} %"

    low, high = (100 * figures["accuracy"][end] for end in ("low", "high"))
    names = ("majority", "nearest", "other_picture")
    floors = [f"{name.replace('_', ' ')} {percent(name)}" for name in names if name in figures]
    few = figures["samples"] < LEAST_QUESTIONS
    return (
        f"{figures['task']} from {figures['view']} states: {percent('accuracy')} right "
        f"({low:.1f} to {high:.1f}) of {figures['samples']}; {', '.join(floors)}"
        + (f"; {figures['verdict']}: {figures['why']}" if figures["why"] else "")
        + (f"; too few to judge by: a report takes {LEAST_QUESTIONS}" if few else "")
    )
