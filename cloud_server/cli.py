"""`cloud-server`: the service's command line.

The readiness line goes to standard output, logs and errors to standard error. Packages of the
`cloud` extra are imported inside functions, so that `main` can say which one is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protos.errors import ConfigError
from protos.process import console

if TYPE_CHECKING:
    from cloud_server.settings import Settings
    from protos.process import settings as configuration


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


# ---------------------------------------------------------------------- the commands


def _serve(given: argparse.Namespace) -> int:
    from cloud_server.settings import Settings, load
    from protos.process import settings as configuration

    settings = load(configuration.given_flags(given, Settings), given.config)
    if given.check_config:
        return _check(settings)
    from cloud_server.frontend.service import serve

    serve(settings)
    return 0


def _no_command(given: argparse.Namespace) -> int:
    if given.check_config:
        return _serve(given)
    raise ConfigError("no command: serve (see cloud-server --help)")


def _check(settings: Settings) -> int:
    """Check everything that can be checked without loading the model."""
    from cloud_server.engine import check_name
    from projector.bundle.load import Bundle
    from projector.serving.backends import BACKENDS

    settings.check_paths()
    check_name(settings.engine)
    if settings.backend not in BACKENDS:
        raise ConfigError(f"no backend '{settings.backend}'; there are {', '.join(BACKENDS)}")
    served: dict[str, Path] = {}
    for path in settings.bundles:
        fingerprint = Bundle.peek(path).source.fingerprint
        if fingerprint in served:
            raise ConfigError(f"{served[fingerprint]} and {path} are for the same edge model")
        served[fingerprint] = path
    sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
    return 0


# ---------------------------------------------------------------------- flags


def _parser() -> configuration.Parser:
    from cloud_server.settings import PREFIX, Settings
    from protos.process import settings as configuration

    exit_codes = (
        "exit codes: 0 stopped by a signal, after draining; otherwise the error's:\n"
        + console.exit_codes()
    )
    parser = configuration.Parser(
        prog="cloud-server",
        description="Answers questions about pictures from a small model's projected KV cache.\n"
        "`cloud-server serve --help` lists the settings.",
        epilog=exit_codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(parser, Settings)
    parser.set_defaults(command=_no_command)
    commands = parser.add_subparsers(title="commands", metavar="serve")
    serve = commands.add_parser(
        "serve",
        help="load the large model and the bundles, and serve until SIGTERM",
        description="Load the large model and the bundles, and serve until SIGTERM. Prints one "
        'JSON line, {"event": "ready", "port": …, "metrics_port": …}, once it can answer.',
        epilog="Every flag is also a key of the TOML file (max_in_flight = 16) and an environment "
        f"variable ({PREFIX}MAX_IN_FLIGHT=16). Flags beat the environment, which beats the "
        "file.\n\n" + exit_codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(serve, Settings, top=False)
    configuration.add_setting_flags(serve, Settings)
    serve.set_defaults(command=_serve)
    return parser


if __name__ == "__main__":
    sys.exit(main())
