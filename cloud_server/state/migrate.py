"""The version of a database's tables: check it, and bring it up to date (Alembic)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from protos.errors import StateError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0006"
"""The newest migration. Named here so that Alembic is imported only when it has work to do."""
_LOCK = 0x6E627374
"""PostgreSQL's advisory lock for migrations, for processes that start at the same time."""


def revision_of(connection: Connection) -> str | None:
    """A database's current migration; None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def is_known(revision: str) -> bool:
    """Whether this version of the software has a migration of that name."""
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    return revision in known


def bring_up_to_date(connection: Connection, to: str = HEAD) -> None:
    """Run the migrations that a database lacks, in the connection's transaction.

    Args:
        connection: in a transaction that holds the write lock of SQLite.
        to: the migration to end at.

    Raises:
        StateError: the database was made by a newer version of the software.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    now = revision_of(connection)
    if now == to:
        return
    if now is not None and not is_known(now):
        raise StateError(
            f"the database is of a newer version ({now}; this one knows up to {HEAD}): install the "
            "newer version again, or restore a backup that this one wrote"
        )
    from alembic import command

    settings = config()
    settings.attributes["connection"] = connection
    command.upgrade(settings, to)


def config() -> Config:
    """Alembic's settings: where the migrations are."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", "cloud_server.state:migrations")
    return made
