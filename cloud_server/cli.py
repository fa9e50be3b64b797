"""`cloud-server`: the service's command line; each command is a file of `cloud_server/commands/`.

The readiness line goes to standard output, logs and errors to standard error. Packages of the
`cloud` extra are imported inside functions, so that `main` can say which one is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloud_server.commands import (
    ask,
    audit,
    authority,
    backup,
    build,
    bundles,
    devices,
    doctor,
    init,
    keys,
    quotas,
    recompute,
    restore,
    serve,
    tenants,
    top,
    updates,
)
from protos.errors import ConfigError
from protos.process import console

if TYPE_CHECKING:
    from protos.process import settings as configuration

COMMANDS = (
    init,
    doctor,
    build,
    serve,
    ask,
    top,
    tenants,
    devices,
    keys,
    quotas,
    bundles,
    updates,
    audit,
    recompute,
    authority,
    backup,
    restore,
)
"""Modules of the commands, in the order of `--help`. None imports a heavy package at its top."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; the process's own by default.

    Returns:
        The exit code: 0, or that of the error in `protos.errors` that ended it.
    """
    return console.run("cloud-server", "cloud", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    given = _parser().parse_args(argv)
    return int(given.command(given))


def _no_command(given: argparse.Namespace) -> int:
    if given.check_config:
        return serve.run(given)
    raise ConfigError("no command, such as serve (see cloud-server --help)")


def _parser() -> configuration.Parser:
    from cloud_server.settings import Settings
    from protos.process import settings as configuration

    parser = configuration.Parser(
        prog="cloud-server",
        description="Answers questions about pictures from a small model's projected KV cache.\n"
        "`cloud-server serve --help` lists the settings.",
        epilog="exit codes: 0 done, or stopped by a signal after draining; otherwise the error's:\n"
        + console.exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(parser, Settings)
    parser.set_defaults(command=_no_command)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
