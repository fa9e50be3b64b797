"""Where the database and the journal of revocations are, by the settings."""

from __future__ import annotations

from pathlib import Path

from cloud_server.state.connect import checked_url, sqlite_file
from cloud_server.state.store import Store
from protos.errors import ConfigError

DATABASE_FILE = "state.db"
JOURNAL_FILE = "revocations"


def located(database: str, directory: Path | None) -> tuple[str, Path | None]:
    """The database's URL, and the journal's file: in the directory, or beside SQLite's file.

    Args:
        database: the setting; empty takes SQLite in the directory.
        directory: the setting.

    Returns:
        Without a directory PostgreSQL has no journal (None).

    Raises:
        ConfigError: neither is set, or the URL is not one of a database that can be used.
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
