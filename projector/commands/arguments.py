"""Adds commands to `projector`: arguments that several share, and argument types."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from projector.commands.settings import Settings, check, settings_of
from protos.errors import ConfigError
from protos.layout import MAX_GRID_SIDE
from protos.process import console
from protos.process import settings as configuration

PAIR = ("source", "target", "device", "max_picture_pixels", "threads")
"""The settings of a command that runs both models."""

Run = Callable[[argparse.Namespace], int]
"""Runs a command: takes the parsed arguments, returns the exit code."""
T = TypeVar("T", int, float)


def _called(name: str) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """Name a type for argparse's messages: "invalid whole number value: 'x'"."""

    def named(read: Callable[[str], T]) -> Callable[[str], T]:
        read.__name__ = name
        return read

    return named


def add_command(
    commands: Any,
    name: str,
    text: str,
    run: Run,
    settings: Sequence[str] = (),
    examples: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add a command to the program's, or to those of a command.

    Args:
        commands: what `add_subparsers` returned.
        name: what is typed.
        text: what it does; starts with a verb.
        run: takes the parsed arguments, returns the exit code.
        settings: the program's settings that are flags of this command.
        examples: command lines.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog(examples, console.ends("projector")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(parser, Settings, top=False)
    if settings:
        configuration.add_setting_flags(parser, Settings, only=settings)
    parser.set_defaults(command=run)
    return parser


def add_pair_command(
    commands: Any, name: str, text: str, run: Run, *examples: str
) -> argparse.ArgumentParser:
    """Add a command that runs both models; `run` finds the pair's settings in its arguments."""

    def on_pair(args: argparse.Namespace) -> int:
        chosen = settings_of(args)
        if args.check_config:
            return check(chosen)
        for setting in PAIR:
            setattr(args, setting, getattr(chosen, setting))
        return run(args)

    return add_command(commands, name, text, on_pair, PAIR, examples)


def add_group(commands: Any, name: str, text: str, inner: Sequence[str], *examples: str) -> Any:
    """Add a command that is a group of commands, such as `projector package`.

    Args:
        commands: what `add_subparsers` returned.
        name: what is typed.
        text: what its commands do; starts with a verb.
        inner: the names of its commands.
        examples: command lines.

    Returns:
        The action that takes its commands' parsers.
    """

    def none(args: argparse.Namespace) -> int:
        if args.check_config:
            return check(settings_of(args))
        raise ConfigError(f"no command: {', '.join(inner)} (see projector {name} --help)")

    parser = add_command(commands, name, text, none, examples=examples)
    return parser.add_subparsers(title="commands", metavar=" | ".join(inner))


def epilog(examples: Sequence[str], ends: str) -> str:
    """The end of a help page: examples, then what it says of exit codes."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"examples:\n{lines}\n\n{ends}"


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add BUNDLE, the bundle that a command is about."""
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="a bundle's folder, or its name in --bundles"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def add_trusted(parser: argparse.ArgumentParser) -> None:
    """Add --trusted, the keys whose signatures are accepted."""
    parser.add_argument(
        "--trusted",
        type=Path,
        metavar="FILE",
        help="accept only what a key of this list signed (the same TOML file as "
        "`cloud-server --trusted-keys`)",
    )


def add_text_tokens(parser: argparse.ArgumentParser) -> None:
    """Add --text-tokens, the longest text that a command takes."""
    parser.add_argument(
        "--text-tokens",
        type=text_tokens,
        default=128,
        metavar="N",
        help="longest text, in tokens (at most 1024); it is part of both layouts; "
        "default: %(default)s",
    )


def add_feedback_rank(parser: argparse.ArgumentParser) -> None:
    """Add --feedback-rank, the size of the feedback."""
    parser.add_argument(
        "--feedback-rank",
        type=count,
        default=0,
        help="numbers per token of the feedback, for a map that goes both ways; 0: all it has",
    )


@_called("whole number")
def count(text: str) -> int:
    """A whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
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
    """A value of `--text-tokens`: at most what a layout's grid can hold."""
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
