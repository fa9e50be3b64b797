"""`cloud-server restore`: restores a backup of the database."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_server.commands.database import actor, add_verb, settings_of
from cloud_server.commands.output import as_json, moment, say
from cloud_server.commands.passphrase import add_passphrase_flag, passphrase
from protos.errors import BackupError, ConfigError, ConflictError
from protos.process.files import write_file
from protos.process.files import writing as writing_file

if TYPE_CHECKING:
    from cloud_server.settings import Settings
    from cloud_server.state.backup import Backup, Holds
    from cloud_server.state.restore import Restored
    from cloud_server.state.store import Store

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = add_verb(
        commands,
        "restore",
        "restore a backup of the database; revocations since the backup are kept",
        _run,
        (
            "cloud-server restore state.nb --passphrase-file /root/passphrase --force",
            "cloud-server restore state.nb --authority authority.nb --directory /srv/bridge",
            "cloud-server restore state.nb --database postgresql://bridge@db/bridge",
        ),
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="made by 'cloud-server backup'")
    parser.add_argument(
        "--authority",
        type=Path,
        metavar="FILE",
        help="made by 'cloud-server backup --with-authority'; existing private keys stay",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace existing tenants; a damaged SQLite database is renamed and kept",
    )
    add_passphrase_flag(parser)


def _run(given: argparse.Namespace) -> int:
    secret = passphrase(given.passphrase_file, twice=False)
    settings = settings_of(given)
    taken = _read(given.file, secret, "state")
    try:
        files = dict(taken.files)
        if given.authority is not None:
            if settings.directory is None:
                raise ConfigError("--authority needs --directory: its keys are put there")
            files |= _read(given.authority, secret, "authority").files
        if settings.directory is not None:
            with writing_file(settings.directory):
                settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_authority(settings.directory, files)
        done, aside = _restore(settings, taken, given.force)
        kept = [] if settings.directory is None else _put(settings.directory, files)
    finally:
        taken.close()
    if given.json:
        as_json(
            {
                "made_s": taken.made_s,
                **vars(done),
                "files_kept": kept,
                "put_aside": None if aside is None else str(aside),
            }
        )
        return 0
    counts = ", ".join(f"{number} {name}" for name, number in done.counts.items())
    say(f"restored {given.file} of {moment(taken.made_s)} UTC: {counts}")
    say(f"shut out again, because that happened since: {done.shut_again}")
    say(f"certificates given since and still valid: {done.certificates_kept}")
    for name in done.gone:
        say(f"added since and gone: {name}")
    for name in kept:
        say(f"left as it was: {name}")
    if aside is not None:
        say(f"the damaged database is at {aside}; what it alone knew of revocations is lost")
    return 0


def _read(path: Path, secret: str, holds: Holds) -> Backup:
    """Read a sealed file to its end.

    Raises:
        BackupError: it is damaged, or the passphrase is wrong.
        ConfigError: it cannot be read.
    """
    from cloud_server.state import backup
    from cloud_server.state.sealed import unseal

    try:
        with path.open("rb") as file:
            return backup.read(unseal(file, secret, path), holds, path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _restore(settings: Settings, taken: Backup, force: bool) -> tuple[Restored, Path | None]:
    """Restore a backup; with `force`, a damaged SQLite file is renamed first."""
    from cloud_server.state.location import located, open_store
    from cloud_server.state.restore import restore
    from cloud_server.state.trouble import DamageError

    def act() -> Restored:
        store: Store = open_store(settings.database, settings.directory, create=True)
        try:
            return restore(store, taken, actor(), force=force)
        finally:
            store.close()

    try:
        return act(), None
    except DamageError:
        url, _ = located(settings.database, settings.directory)
        if not force or not url.startswith("sqlite"):
            raise
        aside = _put_aside(url)
        sys.stderr.write(f"cloud-server: the database is damaged; put aside: {aside}\n")
        return act(), aside


def _put_aside(url: str) -> Path:
    from cloud_server.state.connect import checked_url, sqlite_file

    file = sqlite_file(checked_url(url))
    if file is None:
        raise ConfigError("a database in memory cannot be put aside")
    aside = file.with_name(f"{file.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    with writing_file(aside):
        for side in ("-wal", "-shm", ""):
            path = file.with_name(file.name + side)
            if path.exists():
                path.rename(aside.with_name(aside.name + side))
    return aside


def _check_authority(directory: Path, files: dict[str, bytes]) -> None:
    """Check that the backup is of the authority that the directory has, if it has one.

    Raises:
        ConflictError: it is of another authority, so no device could call.
    """
    from cloud_server.identity.tls import AUTHORITY

    name = f"{AUTHORITY}/roots.pem"
    present, saved = directory / name, files.get(name)
    if saved is None or not present.is_file():
        return
    if not set(_PEM.findall(present.read_bytes())) & set(_PEM.findall(saved)):
        raise ConflictError(
            f"{directory} has another authority than the backup: its devices could not call. "
            "Restore into a new directory, with --authority"
        )


def _put(directory: Path, files: dict[str, bytes]) -> list[str]:
    """Write the files that do not exist; returns the names of existing files that differ.

    Raises:
        BackupError: a file has a name that no backup gives.
        ConfigError, DiskFullError: one cannot be written.
    """
    from cloud_server.identity.tls import AUTHORITY, SERVER
    from cloud_server.state.backup import PUBLIC_FILES
    from cloud_server.state.ownership import own_as_folder

    kept = []
    for name, content in files.items():
        of_authority = re.fullmatch(rf"{AUTHORITY}/[a-z0-9][a-z0-9.-]*", name)
        if name not in (*PUBLIC_FILES, SERVER) and not of_authority:
            raise BackupError(f"the backup names a file '{name[:80]}', which none should hold")
        path = directory / name
        if path.exists():
            kept += [name] if path.read_bytes() != content else []
            continue
        with writing_file(path):
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700)
                own_as_folder(path.parent)
            write_file(path, content, 0o644 if name.endswith("/roots.pem") else 0o600)
            own_as_folder(path)
    return kept
