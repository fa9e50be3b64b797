"""`cloud-server backup`: writes the database and the authority into two sealed files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_server.commands.database import add_verb, opened, settings_of
from cloud_server.commands.output import told
from cloud_server.commands.passphrase import add_passphrase_flag, passphrase
from protos.errors import ConfigError, ConflictError
from protos.process.files import write_file
from protos.process.files import writing as writing_file

if TYPE_CHECKING:
    from cloud_server.state.backup import Holds

_KINDS = "tenants, devices, certificates, keys' hashes, quotas, the audit log, bundles' versions"


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = add_verb(
        commands,
        "backup",
        "write a sealed copy of the database while the service runs",
        _run,
        (
            "cloud-server backup /mnt/backup/state.nb --passphrase-file /root/passphrase",
            "cloud-server backup state.nb --with-authority /mnt/safe/authority.nb",
        ),
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help=f"file to write: {_KINDS}, the settings file and the root's certificate",
    )
    parser.add_argument(
        "--with-authority",
        type=Path,
        metavar="FILE",
        help="second file to write, with the private keys of authority and server; keep it in "
        "another place",
    )
    parser.add_argument("--force", action="store_true", help="replace existing files")
    add_passphrase_flag(parser)


def _run(given: argparse.Namespace) -> int:
    from cloud_server.state import backup

    apart: Path | None = given.with_authority
    for path in (given.file, apart):
        if path is not None and path.exists() and not given.force:
            raise ConflictError(f"{path} is there already: give --force to replace it")
    if apart is not None and apart.absolute() == given.file.absolute():
        raise ConfigError("--with-authority: name another file; the keys need a file of their own")
    secret = passphrase(given.passphrase_file, twice=True)
    directory = settings_of(given).directory
    now_s = time.time()
    with opened(given) as store:
        state = backup.dump_state(store, directory, now_s)
        sizes = {str(given.file): _write(given.file, state, secret, "state")}
    if apart is not None:
        if directory is None:
            raise ConfigError("--with-authority needs --directory: the authority is there")
        keys = backup.dump_authority(directory, now_s)
        sizes[str(apart)] = _write(apart, keys, secret, "authority")
    text = "\n".join(
        f"wrote {name}: {size} bytes, and read it back" for name, size in sizes.items()
    )
    told(given.json, {"made_s": now_s, "files": sizes}, text)
    return 0


def _write(path: Path, content: Iterator[bytes], secret: str, holds: Holds) -> int:
    """Write a sealed file and read it back; returns its length in bytes.

    Raises:
        ConfigError, DiskFullError: it cannot be written.
    """
    from cloud_server.state import backup
    from cloud_server.state.sealed import seal, unseal

    with writing_file(path):
        write_file(path, seal(content, secret), 0o600)
        with path.open("rb") as file:
            backup.read(unseal(file, secret, path), holds, path).close()
        return path.stat().st_size
