"""`cloud-server authority`: look after the service's own authority."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.process import console

if TYPE_CHECKING:
    from cryptography import x509

    from cloud_server.identity.authority import Authority


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command with its own commands."""
    parser = commands.add_parser(
        "authority",
        help="show the service's own authority, replace its intermediate, root or server "
        "certificate",
        description="Look after the authority in the service's directory. A service that runs "
        "takes changes over within seconds; connections stay.",
        epilog="exit codes:\n" + console.exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _verb(verbs, "show", _show, "what there is, and when it ends")
    one = _verb(
        verbs,
        "server-certificate",
        _server_certificate,
        "make a new server certificate (the service does so itself before the old one ends)",
    )
    one.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="host name or address, repeatable; without it the names of the old certificate",
    )
    renew = _verb(
        verbs,
        "renew-intermediate",
        _renew_intermediate,
        "replace the intermediate; devices notice nothing, their certificates stay valid",
    )
    successor = _verb(
        verbs,
        "new-root",
        _new_root,
        "make the root's successor, signed by the present root; devices get it when they renew",
    )
    for verb, whose in ((renew, "the root's, or its successor's"), (successor, "the root's")):
        verb.add_argument(
            "--root-key",
            type=Path,
            required=True,
            metavar="FILE",
            help=f"private key, from where it is kept offline: {whose}",
        )
    _verb(
        verbs,
        "retire-root",
        _retire_root,
        "trust only the successor, once every device has renewed its certificate",
    )


def _verb(
    verbs: argparse._SubParsersAction[Any],
    name: str,
    act: Callable[[argparse.Namespace, Path], str],
    help: str,
) -> argparse.ArgumentParser:
    from cloud_server.settings import Settings
    from protos.process import settings as configuration

    made: argparse.ArgumentParser = verbs.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}."
    )
    configuration.add_config_flags(made, Settings, top=False)
    configuration.add_setting_flags(made, Settings, only=("directory", "database"))
    made.set_defaults(command=lambda given: _run(given, act))
    return made


def _run(given: argparse.Namespace, act: Callable[[argparse.Namespace, Path], str]) -> int:
    from cloud_server.settings import Settings, load
    from protos.process import settings as configuration

    settings = load(configuration.given_flags(given, Settings), given.config)
    sys.stdout.write(act(given, settings.directory_path))
    return 0


def _show(given: argparse.Namespace, folder: Path) -> str:
    from cloud_server.identity import certificates as made
    from cloud_server.identity.tls import AUTHORITY, SERVER

    authority = _open(folder)
    lines = [_line("root", authority.roots[0])]
    lines += [_line("successor", one) for one in authority.roots[1:]]
    signer = "its successor" if authority.by_successor else "the root"
    lines.append(_line("intermediate", authority.intermediate.certificate) + f", by {signer}")
    path = folder / SERVER
    lines.append(_line("server", made.read_certificates(made.read_file(path), path)[0]))
    for key in sorted((folder / AUTHORITY).glob("*-key.pem")):
        lines.append(f"{key} lies here still: move it offline")
    return "\n".join(lines) + "\n"


def _server_certificate(given: argparse.Namespace, folder: Path) -> str:
    from cloud_server.identity.tls import SERVER, server_names, write_server

    names = given.name or server_names(folder / SERVER)
    write_server(folder / SERVER, _open(folder), names, time.time())
    return f"made a server certificate for {', '.join(names)}\n"


def _renew_intermediate(given: argparse.Namespace, folder: Path) -> str:
    authority = _open(folder).renew_intermediate(given.root_key, time.time())
    _server_certificate(argparse.Namespace(name=[]), folder)
    line = _line("intermediate", authority.intermediate.certificate)
    return f"{line}\nmade a server certificate that it signed\n"


def _new_root(given: argparse.Namespace, folder: Path) -> str:
    from cloud_server.identity.authority import SUCCESSOR_KEY
    from cloud_server.identity.tls import AUTHORITY

    authority = _open(folder).new_root(given.root_key, time.time())
    key = folder / AUTHORITY / SUCCESSOR_KEY
    return (
        f"{_line('successor', authority.roots[1])}\n"
        f"MOVE ITS KEY OFFLINE, now: {key}\n"
        "Devices learn of it when they renew their certificates. When every one has:\n"
        "  cloud-server authority renew-intermediate --root-key THAT_KEY\n"
        "  cloud-server authority retire-root\n"
    )


def _retire_root(given: argparse.Namespace, folder: Path) -> str:
    authority = _open(folder).retire_root()
    _server_certificate(argparse.Namespace(name=[]), folder)
    return f"{_line('root', authority.roots[0])}\nthe old root is trusted no more\n"


def _open(folder: Path) -> Authority:
    from cloud_server.identity.authority import Authority
    from cloud_server.identity.tls import AUTHORITY

    return Authority.open(folder / AUTHORITY)


def _line(what: str, certificate: x509.Certificate) -> str:
    from cloud_server.identity.certificates import fingerprint_of

    end = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    return f"{what}: SHA-256 {fingerprint_of(certificate)[:40]}…, ends {end}"
