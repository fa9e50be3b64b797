"""The console script `projector`; each command has a file of its own.

Results go to standard output, errors to standard error. No command imports torch before it runs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from projector.commands import (
    build,
    calibrate,
    calibrate_edge,
    canary,
    catalogue,
    corpus,
    export,
    export_edge,
    guard,
    head,
    hub,
    inspect,
    label,
    layout,
    memory,
    package,
    sign,
    train,
    update,
    validate,
    verify,
)
from projector.commands.arguments import epilog
from projector.commands.settings import Settings, check, settings_of
from protos.errors import ConfigError
from protos.process import console
from protos.process import settings as configuration

COMMANDS = (
    corpus,
    train,
    validate,
    export,
    export_edge,
    head,
    calibrate,
    calibrate_edge,
    guard,
    canary,
    memory,
    hub,
    label,
    build,
    sign,
    update,
    package,
    layout,
    inspect,
    verify,
    catalogue,
)
"""In the order of `--help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        0, or the exit code of the first error (`protos/errors.py`).
    """
    return console.run("projector", "align", lambda: _run(_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    """Run a command; log lines of the library (a model's self-check, for one) are printed."""
    log = logging.getLogger("projector")
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler()]
    return int(args.command(args))


def _no_command(args: argparse.Namespace) -> int:
    if args.check_config:
        return check(settings_of(args))
    raise ConfigError("no command: see projector --help for the list")


def _parser() -> configuration.Parser:
    parser = configuration.Parser(
        prog="projector",
        description="Train a map between the KV caches of two models, judge it, and write, inspect "
        "and sign the\nbundle that serves it. Flags beat the environment, which beats the "
        "configuration file, which\nbeats the defaults.",
        epilog=epilog(
            (
                "projector layout models/edge-a",
                "projector inspect bundles/edge-a-cloud",
                "projector verify bundles/edge-a-cloud --source models/edge-a "
                "--target models/cloud",
                "projector catalogue bundles --json",
            ),
            "exit codes: 0 if all went well, else that of the first error;\n"
            f"{console.INTERRUPTED} if interrupted:\n{console.exit_codes()}",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(parser, Settings)
    parser.set_defaults(command=_no_command)
    commands = parser.add_subparsers(
        title="commands",
        metavar="layout | corpus | train | validate | export | calibrate | inspect | verify | …",
    )
    for command in COMMANDS:
        command.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
