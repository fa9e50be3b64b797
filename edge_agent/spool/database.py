"""The spool's SQLite file: its schema, how it is opened, transactions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from edge_agent.spool.vault import DamagedRowError, Vault
from edge_agent.spool.when_full import Row
from protos.errors import SpoolError

FILE = "spool.db"
PAGE_BYTES = 4096
_VERSION = 1
_APPLICATION = 0x4E425350  # NBSP
_SCHEMA = """
CREATE TABLE frames (
  id INTEGER PRIMARY KEY, rank INTEGER NOT NULL, accepted_s REAL NOT NULL, request_id BLOB NOT NULL,
  size INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX frames_in_order ON frames (rank, id);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_LOG_BYTES = 1 << 20


def connect(folder: Path, vault: Vault) -> sqlite3.Connection:
    """Open a spool's database, or make one; from then on each commit is synced.

    Args:
        folder: where it lies.
        vault: seals rows; those that an agent without a key left are encrypted now.

    Raises:
        SpoolError: it was written with another key.
        sqlite3.Error: it is damaged, of another version, or the disk does not take it.
    """
    path = folder / FILE
    db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        with contextlib.suppress(OSError):
            os.chmod(path, 0o600)
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            f"journal_size_limit={_LOG_BYTES}",
            f"wal_autocheckpoint={_LOG_BYTES // PAGE_BYTES}",
            f"secure_delete={'ON' if vault.key is not None else 'OFF'}",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id={_APPLICATION}; "
                f"PRAGMA user_version={_VERSION}; COMMIT;"
            )
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, this is {_VERSION}")
        said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if said != "ok":
            raise sqlite3.DatabaseError(str(said))
        _check_key(db, folder, vault)
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def rows_after(db: sqlite3.Connection, rank: int, after: int) -> Iterator[Row]:
    """The rows of one priority with a larger id, oldest first."""
    found = db.execute(
        "SELECT id, size FROM frames WHERE rank=? AND id>? ORDER BY id", (rank, after)
    )
    return (Row(*row) for row in found)


def meta(db: sqlite3.Connection, name: str) -> str:
    """A value beside the rows; empty if it was never set."""
    found = db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
    return str(found[0]) if found else ""


def set_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    """Set a value beside the rows."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _check_key(db: sqlite3.Connection, folder: Path, vault: Vault) -> None:
    mark = meta(db, "key")
    if mark == vault.mark:
        return
    secret = "SELECT 1 FROM frames WHERE substr(body, 1, 1) = x'01' LIMIT 1"
    if mark and db.execute(secret).fetchone() is not None:
        raise SpoolError(
            f"spool {folder} was written with another key: give it by --spool-key, or move the "
            "folder away to begin anew"
        )
    with transaction(db):
        set_meta(db, "key", vault.mark)
        for row, name, body in db.execute("SELECT id, request_id, body FROM frames").fetchall():
            if not vault.current(body):
                with contextlib.suppress(DamagedRowError):
                    sealed = vault.seal(name, vault.open(name, body))
                    db.execute("UPDATE frames SET body=? WHERE id=?", (sealed, row))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
