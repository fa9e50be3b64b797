"""`cloud-server serve`: load the large model and the bundles, and serve until SIGTERM."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.errors import ConfigError
from protos.process import console

if TYPE_CHECKING:
    from cloud_server.settings import Settings


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    from cloud_server.settings import PREFIX, Settings
    from protos.process import settings as configuration

    parser = commands.add_parser(
        "serve",
        help="load the large model and the bundles, and serve until SIGTERM",
        description="Load the large model and the bundles, and serve until SIGTERM. Prints one "
        'JSON line, {"event": "ready", "port": …, "metrics_port": …}, once it can answer.',
        epilog="Every flag is also a key of the TOML file (max_in_flight = 16) and an environment "
        f"variable ({PREFIX}MAX_IN_FLIGHT=16). Flags beat the environment, which beats the "
        "file.\n\nexamples:\n"
        "  cloud-server serve --model models/cloud --bundles bundles/edge-a-cloud\n"
        "  cloud-server serve --directory /srv/bridge\n\n"
        + console.ends("cloud-server", "a signal stopped it, after draining"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(parser, Settings, top=False)
    configuration.add_setting_flags(parser, Settings)
    parser.set_defaults(command=run)


def run(given: argparse.Namespace) -> int:
    """Serve, or only check the settings if `--check-config` is given."""
    from cloud_server.settings import Settings, config_file, load
    from protos.process import settings as configuration

    flags = configuration.given_flags(given, Settings)
    settings = load(flags, given.config)
    if given.check_config:
        return _check(settings)
    from cloud_server.frontend.service import serve

    again = functools.partial(load, flags, given.config)
    serve(settings, again, config_file(flags, given.config))
    return 0


def _check(settings: Settings) -> int:
    """Check everything that can be checked without loading the model."""
    from cloud_server.engine import check_name
    from cloud_server.identity.tls import read_shown
    from cloud_server.state.shown import without_password
    from projector.bundle.load import Bundle
    from projector.serving.backends import BACKENDS

    settings.check_paths()
    if settings.secure:
        read_shown(settings.directory_path, settings.tls_certificate, settings.tls_key)
    check_name(settings.engine)
    if settings.backend not in (names := ("auto", *BACKENDS)):
        raise ConfigError(f"no backend '{settings.backend}'; there are {', '.join(names)}")
    served: dict[str, Path] = {}
    for path in settings.bundles:
        fingerprint = Bundle.peek(path).source.fingerprint
        if fingerprint in served:
            raise ConfigError(f"{served[fingerprint]} and {path} are for the same edge model")
        served[fingerprint] = path
    shown = settings.model_copy(update={"database": without_password(settings.database)})
    sys.stdout.write(shown.model_dump_json(indent=2) + "\n")
    return 0
