"""What commands that talk to a running service over HTTP share: its URL, the key, the roots."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from protos.errors import ConfigError

if TYPE_CHECKING:
    from cloud_server.api.client import Client

_URL, _KEY = "NEURAL_BRIDGE_URL", "NEURAL_BRIDGE_KEY"
_DEFAULT_URL = "https://localhost:8443"
_LONGEST_KEY = 4096


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--url", help=f"URL of the HTTP port (default: {_URL}, else {_DEFAULT_URL})"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help=f"file with the key (default: {_KEY})"
    )
    parser.add_argument(
        "--roots",
        type=Path,
        metavar="FILE",
        help="PEM file of the roots to trust (default: those of --directory, else the system's)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="directory of a service on this machine, for its roots",
    )


def client_of(given: argparse.Namespace) -> Client:
    """The client that the flags describe.

    Raises:
        ConfigError: the URL is malformed, or a file does not hold what it should.
    """
    from cloud_server.api.client import Client

    url = given.url or os.environ.get(_URL) or _DEFAULT_URL
    return Client(url, _key(given.key_file), _roots(given))


def _key(file: Path | None) -> str:
    """The key; empty if there is none, as for a service without identities.

    Raises:
        ConfigError: the file holds no key.
    """
    if file is None:
        return os.environ.get(_KEY, "").strip()
    with file.open("rb") as opened:
        text = opened.read(_LONGEST_KEY + 1).decode("ascii", "replace").strip()
    if not text or len(text) > _LONGEST_KEY or not text.isprintable() or " " in text:
        raise ConfigError(f"{file} holds no key: write the key that 'cloud-server keys add' shows")
    return text


def _roots(given: argparse.Namespace) -> Path | None:
    """The file of roots; None for the system's."""
    from cloud_server.identity.authority import ROOTS
    from cloud_server.identity.tls import AUTHORITY
    from cloud_server.settings import PREFIX

    if given.roots is not None:
        return Path(given.roots)
    directory = given.directory or os.environ.get(f"{PREFIX}DIRECTORY")
    return Path(directory) / AUTHORITY / ROOTS if directory else None
