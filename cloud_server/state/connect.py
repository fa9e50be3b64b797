"""Connections to the service's database: SQLite or PostgreSQL, by URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import StaticPool

from cloud_server.state.ownership import own_as_folder
from cloud_server.state.shown import without_password
from cloud_server.state.trouble import LOCK_WAIT_S
from protos.errors import ConfigError, StateError

CONNECT_S = 5
"""Longest time to connect to PostgreSQL."""
_STATEMENT_S = 60
"""Longest statement or idle transaction: a client that hangs must not block the others."""


def checked_url(text: str) -> URL:
    """Parse the URL of a database.

    Raises:
        ConfigError: it is not a URL of SQLite or PostgreSQL. The message holds no password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(
            "--database is not a URL: expected sqlite:////folder/state.db or "
            "postgresql://user@host/name"
        ) from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        return url
    raise ConfigError(
        f"--database: {url.drivername} is not supported: expected sqlite:////folder/state.db or "
        "postgresql://user@host/name"
    )


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite database; None for PostgreSQL and for a database in memory."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def named(url: URL) -> str:
    """A database's name for messages: a file's path, or a URL without its password."""
    file = sqlite_file(url)
    if file is not None:
        return str(file)
    return without_password(url.render_as_string(hide_password=False))


def engine_of(url: URL) -> Engine:
    """An SQLAlchemy engine with the transactions that the store needs.

    A transaction with the execution option `writes` takes SQLite's write lock when it begins, so
    it cannot fail halfway because another transaction wrote first.

    Raises:
        StateError: the database's folder or file cannot be used.
        ConfigError: the driver of PostgreSQL is not installed.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    try:
        engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_timeout=LOCK_WAIT_S,
            connect_args={
                "connect_timeout": CONNECT_S,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,
                "application_name": "neural-bridge",
            },
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "PostgreSQL needs the package psycopg: pip install 'neural-bridge[postgresql]'"
        ) from error

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        before, connection.autocommit = connection.autocommit, True
        connection.execute(
            f"SET lock_timeout = '{LOCK_WAIT_S}s'; SET statement_timeout = '{_STATEMENT_S}s'; "
            f"SET idle_in_transaction_session_timeout = '{_STATEMENT_S}s'"
        )
        connection.autocommit = before

    return engine


def _sqlite(url: URL) -> Engine:
    file = sqlite_file(url)
    if file is None:
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        _make_private(file)
        engine = create_engine(url, pool_timeout=LOCK_WAIT_S, connect_args={"timeout": LOCK_WAIT_S})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a revocation survives a power cut

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _make_private(file: Path) -> None:
    """Create the file for its owner alone; SQLite gives its side files the same mode."""
    try:
        made = not file.exists()
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if made:
            own_as_folder(file)
    except OSError as error:
        raise StateError(
            f"database {file}: {error.strerror}; check that its folder exists and that this user "
            "may write there"
        ) from error
