"""`cloud-server init`: makes the directory of a service with identities."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.errors import ConflictError
from protos.process import console

if TYPE_CHECKING:
    from cloud_server.identity.authority import Authority

_SETTINGS = """\
# Settings of 'cloud-server serve --directory {folder}'; 'cloud-server serve --help' lists all.
host = "0.0.0.0"        # every address of this machine
port = 50051            # gRPC, for devices with a certificate
open_port = 50052       # gRPC, for enrolment, applications and operators
api_host = "0.0.0.0"
api_port = 8443         # HTTPS, for applications and operators
{model}
{bundles}
# tls_certificate = "/etc/letsencrypt/live/bridge.example/fullchain.pem"
# tls_key = "/etc/letsencrypt/live/bridge.example/privkey.pem"
"""

_NOT_GIVEN = {
    "model": '# model = "/path/of/the/large/model"',
    "bundles": '# bundles = ["/path/of/a/bundle"]',
}


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "init",
        help="make a service's directory: authority, server certificate, database, settings file",
        description="Make the directory of a service with identities: its own authority, a server\n"
        "certificate, a database and a settings file. Prints what to do with the root's key.",
        epilog="example:\n  cloud-server init /srv/bridge --name bridge.example \\\n"
        "    --model models/cloud --bundles bundles/edge-a-cloud\n\n"
        + console.ends("cloud-server"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="new or empty directory")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="host name or address of the service for devices and applications, repeatable; this "
        "machine's name, localhost, 127.0.0.1 and ::1 are always in the certificate",
    )
    parser.add_argument(
        "--database",
        default="",
        metavar="URL",
        help="postgresql://user@host/name, if several front ends share it (default: SQLite in DIR)",
    )
    parser.add_argument(
        "--new-authority",
        action="store_true",
        help="take a database that another directory uses, although its devices trust another "
        "authority: each must enrol again. To add a front end, copy its directory instead",
    )
    parser.add_argument(
        "--model", type=Path, metavar="PATH", help="the large model, for the settings file"
    )
    parser.add_argument(
        "--bundles",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a bundle, repeatable, for the settings file",
    )
    parser.set_defaults(command=run)


def run(given: argparse.Namespace) -> int:
    """Make the directory.

    Raises:
        ConflictError: it is not empty, or another directory uses the database.
        ConfigError: it cannot be written, or a name is not a host's.
        ModelError: `--model` is no checkpoint.
        BundleMissingError: `--bundles` is no bundle.
    """
    from cloud_server.identity.authority import ROOT_KEY
    from cloud_server.identity.certificates import end_of
    from cloud_server.identity.tls import AUTHORITY
    from protos.process.addresses import host
    from protos.process.files import expanded, writing

    folder = expanded(given.directory).absolute()
    names = [*map(host, given.name), *_own_names()]
    served = _served(given)
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConflictError(f"{folder} is not empty: init never writes into what is there")
    try:
        authority = _fill(folder, names, given, served)
    except BaseException:
        for made in folder.iterdir():  # half a directory is useless and would stop the next try
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        raise
    key, end_s = folder / AUTHORITY / ROOT_KEY, end_of(authority.intermediate.certificate)
    end = time.strftime("%Y-%m-%d", time.gmtime(end_s))
    sys.stdout.write(
        f"made {folder}: authority, server certificate ({', '.join(dict.fromkeys(names))}), "
        "database and settings.toml\n\n"
        "MOVE THE ROOT'S KEY OFFLINE, now:\n"
        f"  {key}\n"
        "Copy it to two media that are kept apart from this machine, then delete it here. Whoever\n"
        "has it can make an authority that every device trusts. The service runs without it; you\n"
        f"need it for 'cloud-server authority renew-intermediate' before {end}.\n\n"
        "then:\n"
        f"  export NEURAL_BRIDGE_CLOUD_DIRECTORY={shlex.quote(str(folder))}\n"
        "  cloud-server tenants add TENANT\n"
        "  cloud-server devices add NAME\n"
        f"  cloud-server serve{_still_to_give(given)}\n"
    )
    return 0


def _served(given: argparse.Namespace) -> dict[str, str]:
    """Lines of the settings file that name the model and the bundles, by their names."""
    from cloud_server.served import require_bundle, require_model
    from protos.process.files import expanded

    lines = dict(_NOT_GIVEN)
    if given.model is not None:
        model = expanded(given.model).absolute()
        require_model(model)
        lines["model"] = f"model = {_quoted(model)}"
    if given.bundles:
        bundles = [expanded(path).absolute() for path in given.bundles]
        for bundle in bundles:
            require_bundle(bundle)
        lines["bundles"] = f"bundles = [{', '.join(map(_quoted, bundles))}]"
    return lines


def _still_to_give(given: argparse.Namespace) -> str:
    bundles = "" if given.bundles else " --bundles BUNDLE"
    return ("" if given.model else " --model MODEL") + bundles


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _fill(
    folder: Path, names: list[str], given: argparse.Namespace, served: dict[str, str]
) -> Authority:
    """Make everything in an empty folder; returns its authority."""
    from cloud_server.commands.database import actor
    from cloud_server.identity.authority import Authority
    from cloud_server.identity.tls import AUTHORITY, SERVER, write_server
    from cloud_server.settings import SETTINGS_FILE
    from cloud_server.state.beginning import begin
    from cloud_server.state.location import open_store
    from protos.process.files import write_file, writing

    store = open_store(given.database, folder, create=True)
    now_s = time.time()
    try:
        with writing(folder):
            (folder / AUTHORITY).mkdir(mode=0o700)
        authority = Authority.create(folder / AUTHORITY, now_s)
        write_server(folder / SERVER, authority, names, now_s)
        with store.write(actor()) as tx:
            begin(tx, folder, store.named, new_authority=given.new_authority)
    finally:
        store.close()
    text = _SETTINGS.format(folder=folder, **served)
    if given.database:
        text += f"database = {_quoted(given.database)}\n"
    with writing(folder / SETTINGS_FILE):
        write_file(folder / SETTINGS_FILE, text.encode(), 0o600)
    return authority


def _own_names() -> list[str]:
    from protos.errors import ConfigError
    from protos.process.addresses import host

    always = ["localhost", "127.0.0.1", "::1"]
    try:
        return [host(socket.gethostname()), *always]
    except ConfigError:  # a name that cannot be in a certificate
        return always
