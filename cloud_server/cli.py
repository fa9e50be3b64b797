"""`cloud-server`: the service's command line.

Knows flags, exit codes and where output goes: the readiness line on standard output, logs and
errors on standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cloud_server.settings import PREFIX, Settings, load
from projector import configuration
from protos.errors import BridgeError, ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; the process's own by default.

    Returns:
        The exit code: 0, or that of the error in `protos.errors` that ended it.
    """
    try:
        given = _parser().parse_args(argv)
        settings = load(configuration.given_flags(given, Settings), given.config)
        if given.check_config:
            _check(settings)
            sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
            return 0
        from cloud_server.service import serve

        serve(settings)
    except BridgeError as error:
        sys.stderr.write(f"cloud-server: {error.name} (error {error.code}): {error.message}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _check(settings: Settings) -> None:
    """Look at everything that can be checked without loading the model."""
    from cloud_server.engine import check_name
    from projector.backends import BACKENDS
    from projector.bundle import Bundle

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


def _parser() -> configuration.Parser:
    parser = configuration.Parser(
        prog="cloud-server",
        description="Answers questions about pictures from a small model's projected KV cache.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {configuration.installed_version()}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="load the large model and the bundles, and serve until SIGTERM",
        description="Load the large model and the bundles, and serve until SIGTERM. Prints one "
        'JSON line, {"event": "ready", "port": …, "metrics_port": …}, once it can answer.',
        epilog="Every flag is also a key of the TOML file (max_in_flight = 16) and an environment "
        f"variable ({PREFIX}MAX_IN_FLIGHT=16). Flags beat the environment, which beats the "
        "file.\n\n"
        "exit codes: 0 stopped by a signal, after draining; otherwise the error's:\n"
        + configuration.exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(serve, Settings)
    configuration.add_setting_flags(serve, Settings)
    return parser


if __name__ == "__main__":
    sys.exit(main())
