"""The spool's database: frames on the disk, in SQLite's WAL mode with full syncs.

A frame is accepted once its row is committed and synced. It is removed once its record is on the
disk. Every method may block; use a thread. They may be called from several threads.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from edge_agent.metrics import Metrics
from edge_agent.spool.entry import Bounds, Drop, Entry
from edge_agent.spool.lock import Lock
from edge_agent.spool.salvage import ROW_BYTES, readable_rows, set_aside
from edge_agent.spool.spool_clock import SpoolClock
from edge_agent.spool.stored_frame import StoredFrame
from edge_agent.spool.vault import DamagedRowError, Vault
from edge_agent.spool.when_full import CHOICES, DropOldest, Row, ThinOut
from protos.errors import DiskFullError, SpoolError
from protos.process.logs import Logger

FILE = "spool.db"
_VERSION = 1
_APPLICATION = 0x4E425350  # NBSP
_SCHEMA = """
CREATE TABLE frames (
  id INTEGER PRIMARY KEY, rank INTEGER NOT NULL, accepted_s REAL NOT NULL, request_id BLOB NOT NULL,
  size INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX frames_in_order ON frames (rank, id);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_PAGE_BYTES = 4096
_FILLED = 0.85
"""Share of the bound that rows may fill; the rest is for half-empty pages and the log."""
_LOG_BYTES = 1 << 20
_READING_S = 60.0
"""How often the clock's reading is written, seconds."""
_NOT_DAMAGE = ("readonly", "is full", "unable to open", "locked")
_RANKS = (0, 1, 2)


class Spool:
    """Frames that wait, in one folder; `open` before use.

    Args:
        folder: made if need be; one agent at a time.
        bounds: how much may wait.
        vault: seals rows.
        metrics: what is counted.
        log: structured logger.
        clock: tells ages.
    """

    def __init__(
        self,
        folder: Path,
        bounds: Bounds,
        vault: Vault,
        metrics: Metrics,
        log: Logger,
        clock: SpoolClock | None = None,
    ) -> None:
        self.folder, self.bounds = folder, bounds
        self._vault, self._metrics, self._log = vault, metrics, log
        self._clock = clock or SpoolClock()
        self._lock = threading.RLock()
        self._held = Lock(folder / "lock")
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] = (0, 0)
        self._when_full = CHOICES[bounds.when_full]()
        self._next = 1
        self._reading_s = float("-inf")
        self._bytes = self._frames = 0
        metrics.spool_age.set_function(self.oldest_s)

    # ------------------------------------------------------------------ open, close

    def open(self) -> None:
        """Open the database; one that is damaged is set aside, and what can be read of it is kept.

        Raises:
            SpoolError: another agent uses it, or it was written with another key.
            DiskFullError: the disk does not take it: no room, read-only, no such folder.
        """
        with self._lock, self._typed():
            if self._db is not None:
                return
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._held.take()
            except OSError as error:
                raise DiskFullError(
                    f"spool {self.folder} cannot be written: {error.strerror or error}: give "
                    "--spool, a folder that this user may write"
                ) from error
            try:
                self._db = self._connect()
            except sqlite3.Error as error:
                if any(word in str(error) for word in _NOT_DAMAGE):
                    raise
                self._begin_again(str(error))
            self._file = self._on_disk()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; frames stay on the disk."""
        with self._lock:
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._save_reading(self._db)
                    self._db.commit()
                self._db.close()
                self._db = None
            self._held.give_back()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.folder / FILE, timeout=5.0, isolation_level=None, check_same_thread=False
        )
        try:
            os.chmod(self.folder / FILE, 0o600)
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                f"journal_size_limit={_LOG_BYTES}",
                "wal_autocheckpoint=256",
                f"secure_delete={'ON' if self._vault.key is not None else 'OFF'}",
            ):
                db.execute(f"PRAGMA {pragma}").fetchall()
            version = db.execute("PRAGMA user_version").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                db.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA application_id={_APPLICATION}; "
                    f"PRAGMA user_version={_VERSION}; COMMIT;"
                )
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"it is of version {version}, this is {_VERSION}")
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said != "ok":
                raise sqlite3.DatabaseError(str(said))
            self._check_key(db)
            newest = db.execute("SELECT max(id), max(accepted_s) FROM frames").fetchone()
            self._next = (newest[0] or 0) + 1
            self._clock.restore(_meta(db, "clock"), newest[1] or 0.0, self.bounds.age_s)
            self._count(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check_key(self, db: sqlite3.Connection) -> None:
        """Refuse another key; encrypt rows that an agent without a key left.

        Raises:
            SpoolError: the spool was written with another key.
        """
        mark = _meta(db, "key")
        secret = db.execute(
            "SELECT 1 FROM frames WHERE substr(body, 1, 1) = x'01' LIMIT 1"
        ).fetchone()
        if mark and mark != self._vault.mark and secret is not None:
            raise SpoolError(
                f"spool {self.folder} was written with another key: give it by --spool-key, or "
                "move the folder away to begin anew"
            )
        if mark != self._vault.mark:
            with _transaction(db):
                _set_meta(db, "key", self._vault.mark)
                if self._vault.key is not None:
                    for row, name, body in db.execute("SELECT id, request_id, body FROM frames"):
                        if not self._vault.current(body):
                            with contextlib.suppress(DamagedRowError):
                                sealed = self._vault.seal(name, self._vault.open(name, body))
                                db.execute("UPDATE frames SET body=? WHERE id=?", (sealed, row))
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # ------------------------------------------------------------------ in and out

    def accept(self, waiting: Sequence[StoredFrame], ranks: Sequence[int]) -> list[Entry]:
        """Keep frames; they are on the disk when this returns.

        Make room first: `room_for`, then `end` the rows that it names.

        Raises:
            DiskFullError: they cannot be kept; none of them was.
        """
        with self._lock, self._typed():
            db = self._ready()
            entries: list[Entry] = []
            added = 0
            with self._damage(), _transaction(db):
                for one, rank in zip(waiting, ranks, strict=True):
                    name = one.request_id
                    body = self._vault.seal(name, one.to_bytes())
                    size = len(body) + ROW_BYTES
                    row = (self._next + len(entries), rank, self._clock.now(), name, size, body)
                    db.execute("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?)", row)
                    entries.append(Entry(row[0], rank, one))
                    added += size
                if self._clock.now() - self._reading_s > _READING_S:
                    self._save_reading(db)
            self._next += len(entries)
            self._frames += len(entries)
            self._bytes += added
            self._show()
            return entries

    def room_for(
        self, waiting: Sequence[StoredFrame], rank: int, busy: Collection[int] = ()
    ) -> tuple[list[Drop], bool]:
        """The rows that have to go before these frames are accepted: too old ones, and for room.

        Args:
            waiting: the new frames.
            rank: their priority's place; rows of a higher priority stay.
            busy: rows that are on their way: they stay.

        Returns:
            The rows, and whether there is room once they are gone.
        """
        with self._lock, self._typed():
            db = self._ready()
            needed = sum(len(one.to_bytes()) + ROW_BYTES + 64 for one in waiting)
            with self._damage():
                expired = self._expired(db, busy)
                gone = {drop.id for drop in expired}
                excess, room = self._excess(db, needed, rank, {*busy, *gone}, expired)
                return expired + excess, room

    def waiting(self, most: int, busy: Collection[int] = (), rank: int = 2) -> list[Entry | Drop]:
        """What to send next: alarms first, then the oldest.

        Args:
            most: rows.
            busy: rows that are on their way already.
            rank: lowest priority that is wanted.

        Returns:
            The rows; a damaged one as a `Drop`.
        """
        with self._lock, self._typed():
            db = self._ready()
            with self._damage():
                found = db.execute(
                    "SELECT id FROM frames WHERE rank <= ? ORDER BY rank, id LIMIT ?",
                    (rank, most + len(busy)),
                ).fetchall()
                return [self._read(db, row) for (row,) in found if row not in busy][:most]

    def replace(self, row: int, waiting: StoredFrame) -> None:
        """Keep a frame as it was sealed again.

        Raises:
            DiskFullError: it cannot be written now.
        """
        with self._lock, self._typed():
            db = self._ready()
            name = waiting.request_id
            body = self._vault.seal(name, waiting.to_bytes())
            with self._damage():
                db.execute("UPDATE frames SET body=? WHERE id=?", (body, row))

    def end(self, ids: Iterable[int], written: str = "") -> None:
        """Remove rows whose records are on the disk.

        Args:
            ids: the rows.
            written: how far the file of records is read already (`reconcile`); empty: unknown.

        Raises:
            DiskFullError: they cannot be removed now.
        """
        with self._lock, self._typed():
            db = self._ready()
            gone, freed = 0, 0
            with self._damage(), _transaction(db):
                for row in ids:
                    size = db.execute("SELECT size FROM frames WHERE id=?", (row,)).fetchone()
                    if size is not None:
                        db.execute("DELETE FROM frames WHERE id=?", (row,))
                        gone, freed = gone + 1, freed + size[0]
                if written:
                    _set_meta(db, "written", written)
            self._frames -= gone
            self._bytes -= freed
            self._show()

    def written(self) -> str:
        """How far the file of records had been written at the last `end`."""
        with self._lock:
            return _meta(self._db, "written") if self._db is not None else ""

    def rows_of(self, request_ids: Collection[bytes]) -> list[int]:
        """The rows of these requests."""
        with self._lock, self._typed():
            db = self._ready()
            with self._damage():
                every = db.execute("SELECT id, request_id FROM frames")
                return [row for row, name in every if name in request_ids]

    def every(self) -> Iterator[StoredFrame]:
        """All frames that can be read."""
        with self._lock, self._typed():
            db = self._ready()
            with self._damage():
                rows = [row for (row,) in db.execute("SELECT id FROM frames ORDER BY id")]
                for row in rows:
                    entry = self._read(db, row)
                    if isinstance(entry, Entry):
                        yield entry.waiting

    @property
    def frames(self) -> int:
        """Frames that wait."""
        return self._frames

    @property
    def bytes(self) -> int:
        """Their bytes on the disk."""
        return self._bytes

    def oldest_s(self) -> float:
        """Age of the oldest frame, seconds; 0 if none waits."""
        with self._lock:
            if self._db is None:
                return 0.0
            try:
                least = self._db.execute("SELECT accepted_s FROM frames ORDER BY id LIMIT 1")
                found = least.fetchone()
            except sqlite3.Error:
                return 0.0
            return max(0.0, self._clock.now() - found[0]) if found else 0.0

    # ------------------------------------------------------------------ inside

    def _ready(self) -> sqlite3.Connection:
        """The database; opened again if its file is gone."""
        if self._db is not None and self._on_disk() != self._file:
            self._begin_again("its file is gone")
        if self._db is None:
            self.open()
        assert self._db is not None
        return self._db

    def _on_disk(self) -> tuple[int, int]:
        try:
            found = os.stat(self.folder / FILE)
        except OSError:
            return (0, 0)
        return found.st_dev, found.st_ino

    def _begin_again(self, why: str) -> None:
        """Set the database aside, and copy what can be read into a new one.

        Raises:
            DiskFullError: not even a new one can be written.
        """
        before, self._db = self._db, None
        rows = readable_rows(before, self.folder / FILE)
        aside = set_aside(self.folder / FILE)
        self._metrics.spool_set_aside.inc()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._held.take()
            db = self._connect()
            kept = 0
            with _transaction(db):
                for row in rows:
                    kept += db.execute(
                        "INSERT OR IGNORE INTO frames VALUES (?,?,?,?,?,?)", row
                    ).rowcount
        except (sqlite3.Error, OSError) as error:
            raise DiskFullError(f"spool {self.folder} cannot be written: {error}") from error
        self._log.error(
            "spool_set_aside", cause=why, folder=str(self.folder), file=str(aside), frames=kept
        )
        self._db, self._file = db, self._on_disk()
        newest = db.execute("SELECT max(id), max(accepted_s) FROM frames").fetchone()
        self._next = max(self._next, (newest[0] or 0) + 1)
        self._clock.restore("", max(newest[1] or 0.0, self._clock.now()), self.bounds.age_s)
        self._count(db)

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """If the database turns out to be damaged, begin again; the caller's work failed."""
        try:
            yield
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._begin_again(str(error))
            raise DiskFullError(f"the spool was damaged and set aside: {error}") from error

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DiskFullError(f"spool {self.folder} cannot be written: {error}") from error

    def _read(self, db: sqlite3.Connection, row: int) -> Entry | Drop:
        rank, name, size, body = db.execute(
            "SELECT rank, request_id, size, body FROM frames WHERE id=?", (row,)
        ).fetchone()
        try:
            return Entry(row, rank, StoredFrame.from_bytes(self._vault.open(name, body)))
        except DamagedRowError:
            return Drop(row, "damaged", None, bytes(name), size)

    def _drop(self, db: sqlite3.Connection, row: int, cause: str) -> Drop:
        found = self._read(db, row)
        if isinstance(found, Drop):
            return found
        (size,) = db.execute("SELECT size FROM frames WHERE id=?", (row,)).fetchone()
        return Drop(row, cause, found.waiting, found.waiting.request_id, size)

    def _expired(self, db: sqlite3.Connection, busy: Collection[int]) -> list[Drop]:
        before = self._clock.now() - self.bounds.age_s
        found = db.execute(
            "SELECT id FROM frames WHERE id <= (SELECT max(id) FROM frames WHERE accepted_s < ?)",
            (before,),
        )
        return [self._drop(db, row, "age") for (row,) in found.fetchall() if row not in busy]

    def _excess(
        self,
        db: sqlite3.Connection,
        needed: int,
        rank: int,
        busy: Collection[int],
        expired: Sequence[Drop],
    ) -> tuple[list[Drop], bool]:
        most = self.bounds.most_bytes
        cause, how = "full", self._when_full
        if isinstance(how, ThinOut):
            cause = "thinned"
        over = self._bytes + needed - _FILLED * most - sum(drop.size for drop in expired)
        pages = [db.execute(f"PRAGMA {name}_count").fetchone()[0] for name in ("page", "freelist")]
        on_disk = (pages[0] - pages[1]) * _PAGE_BYTES + needed - most
        if on_disk > 0:  # half-empty pages: only rows side by side give whole pages back
            over, cause, how = max(over, on_disk), "full", DropOldest()
        chosen: dict[int, Drop] = {}
        for each in reversed([one for one in _RANKS if one >= rank]):
            if over <= 0:
                break
            for row in how.choose(each, partial(_rows, db, each)):
                if row.id in busy or row.id in chosen:
                    continue
                chosen[row.id] = self._drop(db, row.id, cause)
                over -= row.size
                if over <= 0:
                    break
        return list(chosen.values()), over <= 0 or on_disk > 0

    def _count(self, db: sqlite3.Connection) -> None:
        self._frames, self._bytes = db.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM frames"
        ).fetchone()
        self._show()

    def _show(self) -> None:
        self._metrics.spool_frames.set(self._frames)
        self._metrics.spool_bytes.set(self._bytes)

    def _save_reading(self, db: sqlite3.Connection) -> None:
        _set_meta(db, "clock", self._clock.save())
        self._reading_s = self._clock.now()


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _rows(db: sqlite3.Connection, rank: int, after: int) -> Iterator[Row]:
    found = db.execute(
        "SELECT id, size FROM frames WHERE rank=? AND id>? ORDER BY id", (rank, after)
    )
    return (Row(*row) for row in found)


def _meta(db: sqlite3.Connection, name: str) -> str:
    found = db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
    return str(found[0]) if found else ""


def _set_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
