"""Where the database and the journal of revocations are, by the settings."""

from __future__ import annotations

from pathlib import Path

from protos.errors import ConfigError

DATABASE_FILE = "state.db"
JOURNAL_FILE = "revocations"


def database_url(database: str, directory: Path | None) -> str:
    """The database's URL.

    Args:
        database: the setting; empty takes SQLite in the directory.
        directory: the setting.

    Raises:
        ConfigError: neither is set.
    """
    if database:
        return database
    if directory is None:
        raise ConfigError(
            "no database: give --directory (made by 'cloud-server init') or --database"
        )
    return f"sqlite:///{directory.absolute() / DATABASE_FILE}"


def journal_path(database: str, directory: Path | None) -> Path | None:
    """The journal's file: in the directory, or beside the file of SQLite; None without either."""
    if directory is not None:
        return directory.absolute() / JOURNAL_FILE
    file = database.removeprefix("sqlite:///")
    return None if file in (database, "", ":memory:") else Path(file).parent / JOURNAL_FILE
