"""Where the settings put the database and the journal of revocations."""

from __future__ import annotations

from pathlib import Path

from cloud_server.state.connect import checked_url, sqlite_file
from cloud_server.state.store import Store
from protos.errors import ConfigError

DATABASE_FILE = "state.db"
JOURNAL_FILE = "revocations"


def located(database: str, directory: Path | None) -> tuple[str, Path | None]:
    """The database's URL and the journal's file, which is in the directory or beside SQLite's file.

    Args:
        database: the setting; empty takes SQLite in the directory.
        directory: the setting.

    Returns:
        The URL, and the journal; None for PostgreSQL without a directory.

    Raises:
        ConfigError: neither is set, or the URL names no database that can be used.
    """
    if directory is not None:
        folder = directory.absolute()
        return database or f"sqlite:///{folder / DATABASE_FILE}", folder / JOURNAL_FILE
    if not database:
        raise ConfigError(
            "no database: give --directory (made by 'cloud-server init') or --database"
        )
    file = sqlite_file(checked_url(database))
    return database, None if file is None else file.absolute().parent / JOURNAL_FILE


def open_store(database: str, directory: Path | None, *, create: bool = False) -> Store:
    """Open the database that the settings name.

    Args:
        database: see `located`.
        directory: see `located`.
        create: see `Store.open`.

    Raises:
        ConfigError, StateError: see `located` and `Store.open`.
    """
    url, journal = located(database, directory)
    return Store.open(url, journal, create=create)
