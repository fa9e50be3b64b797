"""What to do with a damaged spool: read the rows that can be read, and put its files aside."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

Columns = tuple[int, int, float, bytes, int, bytes]
ROW_BYTES = 96
"""A row's columns beside its body, its place in the index and its share of the pages."""
_NEXT = (
    "SELECT id, rank, accepted_s, request_id, size, body FROM frames WHERE id >= ? "
    "ORDER BY id LIMIT 1"
)
_MOST_TRIES = 2_000_000
_LARGEST = 1 << 40
_KEPT = 4
"""Damaged files that are kept for a look at them; older ones are removed."""


def readable_rows(db: sqlite3.Connection | None, path: Path) -> list[Columns]:
    """The rows of a damaged database that can still be read.

    Rows are looked up one by one, so a damaged page costs its own rows and no others.

    Args:
        db: the open connection, closed by this; None to open the file.
        path: the database's file.
    """
    rows: dict[int, Columns] = {}
    try:
        if db is None:
            if not path.is_file():
                return []
            _fill_up(path)
            db = sqlite3.connect(path, isolation_level=None)
        first, last = _range(db)
        row, tries = first, 0
        while row <= last and tries < _MOST_TRIES:
            tries += 1
            try:
                found = db.execute(_NEXT, (row,)).fetchone()
            except (sqlite3.Error, ValueError, OverflowError):
                row += 1
                continue
            if found is None:
                break
            whole = _whole(found)
            if whole is not None:
                rows[whole[0]] = whole
            row = max(row, found[0] if isinstance(found[0], int) else row) + 1
    except sqlite3.Error:
        pass
    finally:
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
    return [rows[key] for key in sorted(rows)]


def set_aside(path: Path) -> Path:
    """Rename a database and its log, so that a new one can begin; the latest few are kept.

    Returns:
        The database's new name.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.{stamp}.aside")
    number = 1
    while aside.exists():
        aside = path.with_name(f"{path.name}.{stamp}-{number}.aside")
        number += 1
    for end in ("", "-wal", "-shm"):
        source = path.with_name(path.name + end)
        with contextlib.suppress(OSError):
            if end == "-shm":
                source.unlink(missing_ok=True)
            else:
                os.replace(source, aside.with_name(aside.name + end))
    kept = sorted(path.parent.glob(f"{path.name}.*.aside"), key=lambda file: file.stat().st_mtime)
    for old in kept[:-_KEPT]:
        for end in ("", "-wal"):
            with contextlib.suppress(OSError):
                old.with_name(old.name + end).unlink(missing_ok=True)
    return aside


def _fill_up(path: Path) -> None:
    """Give a file that lost its end zeros in its place: SQLite would not open it at all."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        head = file.read(100)
        if head.startswith(b"SQLite format 3\0") and len(head) == 100:
            pages = int.from_bytes(head[28:32], "big")
            size = pages * (int.from_bytes(head[16:18], "big") or 1 << 16)
            if path.stat().st_size < size <= _LARGEST:
                os.truncate(path, size)


def _range(db: sqlite3.Connection) -> tuple[int, int]:
    """Least and largest id; a damaged end is looked for through the index, then widely."""
    ends = []
    for which in ("min", "max"):
        for table in ("frames NOT INDEXED", "frames INDEXED BY frames_in_order"):
            with contextlib.suppress(sqlite3.Error, TypeError):
                (found,) = db.execute(f"SELECT {which}(id) FROM {table}").fetchone()
                if isinstance(found, int):
                    ends.append(found)
    if not ends:
        return 1, 0
    return max(1, min(ends)), min(max(ends), max(1, min(ends)) + _MOST_TRIES)


def _whole(found: tuple[object, ...] | None) -> Columns | None:
    """The columns of a row, if they have the types that they should have."""
    if found is None:
        return None
    id_, rank, accepted_s, request_id, size, body = found
    if (
        isinstance(id_, int)
        and rank in (0, 1, 2)
        and isinstance(rank, int)
        and isinstance(accepted_s, float)
        and isinstance(request_id, bytes)
        and isinstance(size, int)
        and isinstance(body, bytes)
    ):
        return id_, rank, accepted_s, request_id, len(body) + ROW_BYTES, body
    return None
