"""A backup's content as JSON lines: the rows at one moment, and files of the service's directory.

    {"format": "neural-bridge-backup", "holds": "state" | "authority", "revision", "made_s", …}
    {"table": "tenants", "columns": ["id", …], "rows": [[…], …]}     some lines a table
    {"file": "settings.toml", "base64": "…"}                          a line a file
    {"end": lines before this one}

It does not depend on the kind of database: a backup of SQLite restores into PostgreSQL. It leaves
out one-time codes, which are valid for an hour, answers of idempotency keys, reports of front ends
and of devices, and orders for devices, which a restore would give again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, MetaData, Table, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from cloud_server.identity.tls import AUTHORITY, SERVER
from cloud_server.settings import SETTINGS_FILE
from cloud_server.state import connect, migrate
from cloud_server.state.reapply import PORTION
from cloud_server.state.store import Store
from cloud_server.state.tables import (
    Base,
    BundleReport,
    ChangeRow,
    CodeRow,
    DeviceReportRow,
    DeviceStandingRow,
    IdempotencyRow,
    OrderChangeRow,
    OrderRow,
)
from protos.errors import BackupError, ConfigError

Holds = Literal["state", "authority"]
FORMAT = "neural-bridge-backup"
LEFT_OUT = {
    table.__tablename__
    for table in (
        ChangeRow,
        CodeRow,
        IdempotencyRow,
        BundleReport,
        OrderRow,
        OrderChangeRow,
        DeviceReportRow,
        DeviceStandingRow,
    )
}
PUBLIC_FILES = (SETTINGS_FILE, f"{AUTHORITY}/roots.pem")
"""Files that a backup of the state holds; none has a private key."""
_LONGEST_LINE = 64 << 20


def tables() -> list[Table]:
    """The tables in a backup, each after the tables that it refers to."""
    return [table for table in Base.metadata.sorted_tables if table.name not in LEFT_OUT]


def dump_state(store: Store, directory: Path | None, made_s: float) -> Iterator[bytes]:
    """The database as it is at one moment, and the directory's public files.

    Args:
        store: may be in use by a running service.
        directory: the service's, if it has one.
        made_s: now, seconds since 1970.

    Raises:
        StateError: the database cannot be read.
        ConfigError: a file cannot be read.
    """
    return _lines("state", made_s, _state(store, directory))


def dump_authority(directory: Path, made_s: float) -> Iterator[bytes]:
    """The authority with its private keys, and the server's certificate and key.

    Raises:
        ConfigError: the directory has no authority, or a file cannot be read.
    """
    folder = directory / AUTHORITY
    paths = [path for path in (*sorted(folder.glob("*")), directory / SERVER) if path.is_file()]
    if not any(path.parent == folder for path in paths):
        raise ConfigError(f"{folder} holds no authority")
    files = ({"file": str(p.relative_to(directory)), "base64": _read(p)} for p in paths)
    return _lines("authority", made_s, files)


def _state(store: Store, directory: Path | None) -> Iterator[dict[str, Any]]:
    with store.read() as session:
        for table in tables():
            columns = [column.name for column in table.columns]
            rows = session.execute(
                select(table).order_by(*table.primary_key.columns),
                execution_options={"yield_per": PORTION},
            )
            for portion in rows.partitions(PORTION):
                yield {
                    "table": table.name,
                    "columns": columns,
                    "rows": [list(row) for row in portion],
                }
    for name in PUBLIC_FILES:
        if directory is not None and (directory / name).is_file():
            yield {"file": name, "base64": _read(directory / name)}


def _lines(holds: Holds, made_s: float, content: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    head = {"format": FORMAT, "holds": holds, "revision": migrate.HEAD, "made_s": made_s}
    yield _line(head)
    count = 1
    for one in content:
        yield _line(one)
        count += 1
    yield _line({"end": count})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _read(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


@dataclass
class Backup:
    """A backup that was read to its end and checked.

    Attributes:
        made_s: when it was made, seconds since 1970.
        files: bytes by path, relative to the directory.
        rows: a database in memory with its rows; None for a backup of an authority.
    """

    made_s: float
    files: dict[str, bytes] = field(default_factory=dict)
    rows: Connection | None = None

    def close(self) -> None:
        """Close the database in memory."""
        if self.rows is not None:
            self.rows.close()
            self.rows.engine.dispose()


def read(parts: Iterable[bytes], holds: Holds, named: object) -> Backup:
    """Read a backup to its end and check it.

    Args:
        parts: its content, in parts of any length.
        holds: what it should hold.
        named: the file, for messages.

    Raises:
        BackupError: it is damaged, from a newer version, or holds something else.
    """
    made: Backup | None = None
    count, ended = 0, False
    try:
        for line in _split(parts):
            if ended:
                raise BackupError(f"{named} goes on after its end")
            one = json.loads(line)
            if made is None:
                made = _begin(one, holds, named)
            elif "table" in one:
                _take_rows(made, one)
            elif "file" in one:
                made.files[str(one["file"])] = base64.b64decode(one["base64"], validate=True)
            else:
                ended = one["end"] == count
            count += 1
        if made is None or not ended:
            raise BackupError(f"{named} is not whole")
        if made.rows is not None:
            migrate.bring_up_to_date(made.rows)
    except BaseException as error:
        if made is not None:
            made.close()
        if isinstance(error, KeyError | TypeError | ValueError | SQLAlchemyError):
            raise BackupError(f"{named} is damaged: {type(error).__name__}: {error}") from error
        raise
    return made


def _begin(head: Any, holds: Holds, named: object) -> Backup:
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise BackupError(f"{named} is sealed, but holds no backup of cloud-server")
    if head["holds"] != holds:
        raise BackupError(f"{named} is a backup of the {head['holds']}, not of the {holds}")
    made = Backup(float(head["made_s"]))
    if holds == "authority":
        return made
    revision = str(head["revision"])
    if not migrate.is_known(revision):
        raise BackupError(
            f"{named} was made by a newer version ({revision}; this one knows up to "
            f"{migrate.HEAD}): restore it with that version"
        )
    made.rows = connect.engine_of(connect.checked_url("sqlite://")).connect()
    migrate.bring_up_to_date(made.rows, revision)
    for table in reversed(_as_they_were(made.rows).sorted_tables):
        if table.name != "alembic_version":
            made.rows.execute(delete(table))
    return made


def _as_they_were(connection: Connection) -> MetaData:
    """The tables of the version that wrote the backup."""
    found = MetaData()
    found.reflect(connection)
    return found


def _take_rows(made: Backup, one: dict[str, Any]) -> None:
    if made.rows is None:
        raise ValueError("rows in a backup of an authority")
    table = Table(str(one["table"]), MetaData(), autoload_with=made.rows)
    made.rows.execute(
        insert(table), [dict(zip(one["columns"], row, strict=True)) for row in one["rows"]]
    )


def _split(parts: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for part in parts:
        *lines, held = (held + part).split(b"\n")
        yield from lines
        if len(held) > _LONGEST_LINE:
            raise ValueError("a line without end")
    if held:
        yield held
