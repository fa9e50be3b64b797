"""Arguments that several of `projector`'s commands take, and the types that check them.

Knows argparse. Does not know: models, files, what a command does with its arguments.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from protos.layout import MAX_GRID_SIDE
from protos.process import console

MOST_THREADS = 1024

T = TypeVar("T", int, float)


def _called(name: str) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """What argparse calls a type in its message: "invalid whole number value: 'x'"."""

    def named(read: Callable[[str], T]) -> Callable[[str], T]:
        read.__name__ = name
        return read

    return named


def add_models(parser: argparse.ArgumentParser) -> None:
    """The two models and the CPU threads, which the environment or a file may name as well."""
    for side, which in (("source", "edge"), ("target", "cloud")):
        parser.add_argument(
            f"--{side}",
            type=Path,
            default=argparse.SUPPRESS,
            help=f"directory of the {which} model's checkpoint",
        )
    parser.add_argument(
        "--threads",
        type=threads,
        default=argparse.SUPPRESS,
        help="CPU threads; 0: as many as quota, affinity mask and cores allow",
    )
    parser.add_argument(
        "--max-picture-pixels",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="pixels of a picture that are decoded at most; larger JPEG files are decoded smaller",
    )
    parser.set_defaults(pair=True)


def add_pair_command(
    commands: Any,
    name: str,
    text: str,
    function: Callable[[argparse.Namespace], int],
    example: str,
) -> argparse.ArgumentParser:
    """Add a command that runs both models, with the flags that name them."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}\n\nexit codes: 0 where all is well, otherwise:\n"
        f"{console.exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_models(parser)
    parser.add_argument(
        "--text-tokens",
        type=text_tokens,
        default=128,
        help="of texts: the longest that is taken, at most 1024; part of both layouts; default: "
        "%(default)s",
    )
    parser.set_defaults(command=function)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the models run."""
    parser.add_argument(
        "--device",
        default=argparse.SUPPRESS,
        help="where both models run, and a map that is trained, such as cuda (under torchrun each "
        "process takes the GPU of its number); default: cpu",
    )


def add_reverse_rank(parser: argparse.ArgumentParser) -> None:
    """How much of a way back is used."""
    parser.add_argument(
        "--reverse-rank",
        type=count,
        default=0,
        help="numbers per token of the way back of a map that goes both ways; 0 for all it has",
    )


@_called("whole number")
def count(text: str) -> int:
    """A whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


@_called("whole number")
def threads(text: str) -> int:
    """A number of CPU threads; 0 leaves the choice to the program."""
    value = count(text)
    if value > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST_THREADS}")
    return value


@_called("whole number")
def whole(text: str) -> int:
    """A whole number, 1 or more."""
    value = count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


@_called("whole number")
def seed(text: str) -> int:
    """A seed of random numbers, as torch and NumPy both take it."""
    value = count(text)
    if value >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text} is not below 2**64")
    return value


@_called("whole number")
def text_tokens(text: str) -> int:
    """As `--text-tokens` takes it: what a layout's grid can hold."""
    value = whole(text)
    if value > MAX_GRID_SIDE:
        raise argparse.ArgumentTypeError(f"{text}: a text has at most {MAX_GRID_SIDE} tokens")
    return value


@_called("number")
def power(text: str) -> float:
    """Watts."""
    value = float(text)
    if not 0 < value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text} W is not in 0..100000")
    return value


@_called("number")
def weight(text: str) -> float:
    """A weight, 0 or more, finite."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no weight: 0 or more")
    return value


@_called("number")
def rate(text: str) -> float:
    """0 or more, less than 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more, less than 1")
    return value
