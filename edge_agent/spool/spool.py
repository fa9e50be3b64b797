"""The spool: frames on the disk, in SQLite's WAL mode with full syncs.

A frame is accepted once its row is committed and synced. It is removed once its record is on the
disk. Every method may block; use a thread. They may be called from several threads.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from edge_agent.metrics import Metrics
from edge_agent.spool.database import (
    FILE,
    PAGE_BYTES,
    connect,
    meta,
    rows_after,
    set_meta,
    transaction,
)
from edge_agent.spool.entry import Bounds, Drop, Entry
from edge_agent.spool.lock import Lock
from edge_agent.spool.salvage import ROW_BYTES, readable_rows, set_aside
from edge_agent.spool.spool_clock import SpoolClock
from edge_agent.spool.stored_frame import StoredFrame
from edge_agent.spool.vault import DamagedRowError, Vault
from edge_agent.spool.when_full import CHOICES, DropOldest, ThinOut
from protos.errors import DiskFullError
from protos.process.files import sync_folder
from protos.process.logs import Logger

_FILLED = 0.85
"""Share of the bound that rows may fill; the rest is for half-empty pages and the log."""
_SPARE_PAGES = 8
"""Pages that one more row may take for itself, the index and their inner pages."""
_AT_ONCE, _AT_ONCE_BYTES = 0.01, 64 << 10
"""Room made beyond what is needed, so that a full spool does not make room for each frame."""
_READING_S = 60.0
"""How often the clock's reading is written, seconds."""
_NOT_DAMAGE = ("readonly", "is full", "unable to open", "locked")
_LOWEST = 2

Result = TypeVar("Result")


class Spool:
    """Frames that wait, in one folder; `open` before use.

    Args:
        folder: made if need be; one agent at a time.
        bounds: how much may wait.
        vault: seals rows.
        metrics: what is counted.
        log: structured logger.
        clock: tells ages.

    Attributes:
        frames: frames that wait.
        bytes: their bytes on the disk.
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
        self.bytes = self.frames = 0
        self._vault, self._metrics, self._log = vault, metrics, log
        self._clock = clock or SpoolClock()
        self._lock = threading.RLock()
        self._held = Lock(folder / "lock")
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] = (0, 0)
        self._when_full = CHOICES[bounds.when_full]()
        self._next = 1
        self._reading_s = float("-inf")
        metrics.spool_age.set_function(self.oldest_s)

    # ------------------------------------------------------------------ open, close

    def open(self) -> None:
        """Open the database; one that is damaged is set aside, and what can be read of it is kept.

        Raises:
            SpoolError: another agent uses it, or it was written with another key.
            DiskFullError: the disk does not take it: no room, read-only, no such folder.
        """
        try:
            with self._lock, self._typed():
                self._opened()
        except BaseException:
            self.close()
            raise

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
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
                self._db = None
            self._held.give_back()

    # ------------------------------------------------------------------ in and out

    def accept(self, frame: StoredFrame, rank: int) -> Entry:
        """Keep a frame; it is on the disk when this returns.

        Make room first: `room_for`, then `end` the rows that it names.

        Args:
            frame: what to keep.
            rank: its priority's place.

        Raises:
            DiskFullError: it cannot be kept.
        """

        def work(db: sqlite3.Connection) -> Entry:
            name = frame.request_id
            body = self._vault.seal(name, frame.body)
            entry, size = (
                Entry(self._next, rank, frame, 0, self._clock.now()),
                len(body) + ROW_BYTES,
            )
            row = (entry.id, rank, entry.accepted_s, name, size, body)
            with transaction(db):
                db.execute("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?)", row)
                if self._clock.now() - self._reading_s > _READING_S:
                    self._save_reading(db)
            self._next += 1
            self._changed(1, size)
            return entry

        return self._do(work)

    def room_for(
        self, frame: StoredFrame | None, rank: int, busy: Collection[int] = ()
    ) -> tuple[list[Drop], bool]:
        """The rows that have to go before a frame is accepted: too old ones, and for its room.

        Args:
            frame: the new one; None to look for too old ones.
            rank: its priority's place; rows of a higher priority stay.
            busy: rows that are on their way: they stay.

        Returns:
            The rows, and whether there is room once they are gone.
        """
        needed = 0 if frame is None else len(frame.body) + ROW_BYTES + 64

        def work(db: sqlite3.Connection) -> tuple[list[Drop], bool]:
            expired = self._expired(db, busy)
            if frame is None:
                return expired, True
            needed_now = needed - sum(drop.size for drop in expired)
            gone = {*busy, *(drop.id for drop in expired)}
            excess, room = self._excess(db, needed_now, rank, gone)
            return expired + excess, room

        return self._do(work)

    def waiting(self, most: int, busy: Collection[int] = ()) -> list[Entry | Drop]:
        """What to send next: alarms first, then the oldest.

        Args:
            most: rows.
            busy: rows that are on their way already.

        Returns:
            The rows; a damaged one as a `Drop`.
        """

        def work(db: sqlite3.Connection) -> list[Entry | Drop]:
            found = db.execute(
                "SELECT id FROM frames ORDER BY rank, id LIMIT ?", (most + len(busy),)
            ).fetchall()
            return [self._read(db, row) for (row,) in found if row not in busy][:most]

        return self._do(work)

    def replace(self, row: int, frame: StoredFrame) -> None:
        """Keep a frame as it was sealed again.

        Raises:
            DiskFullError: it cannot be written now.
        """
        body = self._vault.seal(frame.request_id, frame.body)
        self._do(lambda db: db.execute("UPDATE frames SET body=? WHERE id=?", (body, row)))

    def end(self, ids: Iterable[int], written: str = "") -> None:
        """Remove rows whose records are on the disk.

        Args:
            ids: the rows.
            written: how far the file of records is known (`output.recorded`); empty: unknown.

        Raises:
            DiskFullError: they cannot be removed now.
        """
        rows = list(ids)

        def work(db: sqlite3.Connection) -> None:
            gone = freed = 0
            with transaction(db):
                for row in rows:
                    found = db.execute("SELECT size FROM frames WHERE id=?", (row,)).fetchone()
                    if found is not None:
                        db.execute("DELETE FROM frames WHERE id=?", (row,))
                        gone, freed = gone + 1, freed + found[0]
                if written:
                    set_meta(db, "written", written)
            self._changed(-gone, -freed)

        self._do(work)

    def written(self) -> str:
        """How far the file of records had been written at the last `end`."""
        return self._do(lambda db: meta(db, "written"))

    def rows_of(self, request_ids: Collection[bytes]) -> list[int]:
        """The rows of these requests."""

        def work(db: sqlite3.Connection) -> list[int]:
            every = db.execute("SELECT id, request_id FROM frames")
            return [row for row, name in every if name in request_ids]

        return self._do(work)

    def every(self) -> list[StoredFrame]:
        """All frames that can be read, oldest first."""

        def work(db: sqlite3.Connection) -> list[StoredFrame]:
            rows = db.execute("SELECT id FROM frames ORDER BY id").fetchall()
            read = [self._read(db, row) for (row,) in rows]
            return [entry.frame for entry in read if isinstance(entry, Entry)]

        return self._do(work)

    def age_s(self, entry: Entry) -> float:
        """How long a frame has waited, seconds that the device was on."""
        return self._clock.now() - entry.accepted_s

    def oldest_s(self) -> float:
        """Age of the oldest frame, seconds; 0 if none waits."""
        with self._lock:
            if self._db is None:
                return 0.0
            try:
                oldest = "SELECT accepted_s FROM frames ORDER BY id LIMIT 1"
                found = self._db.execute(oldest).fetchone()
            except sqlite3.Error:
                return 0.0
            return max(0.0, self._clock.now() - found[0]) if found else 0.0

    # ------------------------------------------------------------------ the database

    def _do(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Work with the database; if it turns out to be damaged, with a new one."""
        with self._lock, self._typed():
            try:
                return work(self._opened())
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                return work(self._begin_again(str(error)))

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise DiskFullError(
                f"spool {self.folder} cannot be written: {why or error}: give --spool, a folder on "
                "a disk with room that this user may write"
            ) from error

    def _opened(self) -> sqlite3.Connection:
        """The open database; opened again if its file is gone."""
        if self._db is not None:
            return self._db if self._on_disk() == self._file else self._begin_again("it is gone")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held.take()
        try:
            return self._use(connect(self.folder, self._vault))
        except sqlite3.Error as error:
            if any(word in str(error) for word in _NOT_DAMAGE):
                raise
            return self._begin_again(str(error))

    def _use(self, db: sqlite3.Connection) -> sqlite3.Connection:
        newest, latest_s = db.execute("SELECT max(id), max(accepted_s) FROM frames").fetchone()
        self._next = max(self._next, (newest or 0) + 1)
        self._clock.restore(meta(db, "clock"), latest_s or 0.0, self.bounds.age_s)
        self._save_reading(db)
        sync_folder(self.folder)  # the new files' names
        self._db, self._file = db, self._on_disk()
        self.frames, self.bytes = db.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM frames"
        ).fetchone()
        self._changed(0, 0)
        return db

    def _begin_again(self, why: str) -> sqlite3.Connection:
        """Set the database aside, and copy what can be read into a new one."""
        before, self._db = self._db, None
        rows = readable_rows(before, self.folder / FILE)
        aside = set_aside(self.folder / FILE)
        self._metrics.spool_set_aside.inc()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held.take()
        db = connect(self.folder, self._vault)
        with transaction(db):
            set_meta(db, "clock", self._clock.save())
            db.executemany("INSERT OR IGNORE INTO frames VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._use(db)
        self._log.error("spool_set_aside", cause=why, file=str(aside), frames_kept=self.frames)
        return db

    def _on_disk(self) -> tuple[int, int]:
        try:
            found = os.stat(self.folder / FILE)
        except OSError:
            return (0, 0)
        return found.st_dev, found.st_ino

    # ------------------------------------------------------------------ rows

    def _read(self, db: sqlite3.Connection, row: int) -> Entry | Drop:
        rank, accepted_s, name, size, body = db.execute(
            "SELECT rank, accepted_s, request_id, size, body FROM frames WHERE id=?", (row,)
        ).fetchone()
        try:
            frame = StoredFrame.from_bytes(self._vault.open(name, body))
            return Entry(row, rank, frame, size, accepted_s)
        except DamagedRowError:
            return Drop(row, "damaged", None, bytes(name), size)

    def _drop(self, db: sqlite3.Connection, row: int, cause: str) -> Drop:
        found = self._read(db, row)
        if isinstance(found, Drop):
            return found
        return Drop(row, cause, found.frame, found.frame.request_id, found.size)

    def _expired(self, db: sqlite3.Connection, busy: Collection[int]) -> list[Drop]:
        before, drops = self._clock.now() - self.bounds.age_s, []
        for row, accepted_s in db.execute("SELECT id, accepted_s FROM frames ORDER BY id"):
            if accepted_s >= before:
                break
            if row not in busy:
                drops.append(self._drop(db, row, "age"))
        return drops

    def _excess(
        self, db: sqlite3.Connection, needed: int, rank: int, busy: Collection[int]
    ) -> tuple[list[Drop], bool]:
        most, how = self.bounds.most_bytes, self._when_full
        cause = "thinned" if isinstance(how, ThinOut) else "full"
        over = self.bytes + needed - _FILLED * most
        pages, free = (db.execute(f"PRAGMA {n}_count").fetchone()[0] for n in ("page", "freelist"))
        half_empty = (pages - free + _SPARE_PAGES) * PAGE_BYTES + needed - most
        if half_empty > 0:  # only rows side by side give whole pages back
            over, cause, how = max(over, half_empty), "full", DropOldest()
        over += min(_AT_ONCE * most, _AT_ONCE_BYTES) if over > 0 else 0
        chosen: dict[int, Drop] = {}
        for each in range(_LOWEST, rank - 1, -1):
            rows = how.choose(each, partial(rows_after, db, each)) if over > 0 else ()
            for row in rows:
                if row.id in busy or row.id in chosen:
                    continue
                chosen[row.id] = self._drop(db, row.id, cause)
                over -= row.size
                if over <= 0:
                    break
        return list(chosen.values()), over <= 0 or half_empty > 0

    def _changed(self, frames: int, size: int) -> None:
        self.frames += frames
        self.bytes += size
        self._metrics.spool_frames.set(self.frames)
        self._metrics.spool_bytes.set(self.bytes)

    def _save_reading(self, db: sqlite3.Connection) -> None:
        set_meta(db, "clock", self._clock.save())
        self._reading_s = self._clock.now()
