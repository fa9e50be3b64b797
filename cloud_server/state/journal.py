"""The journal of revocations: a file beside the database that a restore does not replace.

It has one JSON line for each time that something was disabled, enabled, revoked or removed, in
order. A line is synced to the disk before its transaction commits. When a database is restored or
opened, everything that the journal last saw disabled, revoked or removed is disabled again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cloud_server.state.ownership import own_as_folder
from protos.errors import StateError

Kind = Literal["tenant", "device", "certificate", "key"]
Event = Literal["shut", "opened", "removed"]
LONGEST_LATE_RENEWAL_DAYS = 400.0
"""Longest time after its end that a service may be told to renew a certificate."""
KEEP_EXPIRED_S = LONGEST_LATE_RENEWAL_DAYS * 86400.0
"""So long an expired certificate is revoked like a valid one."""


@dataclass(frozen=True)
class Shut:
    """One line of the journal.

    Attributes:
        event: what happened.
        kind: the kind of thing.
        id: its id, or a certificate's serial number.
        name: its name, for people.
        at_s: when, seconds since 1970.
    """

    event: Event
    kind: Kind
    id: str
    name: str
    at_s: float

    def to_line(self) -> bytes:
        """The line, with its newline."""
        return json.dumps(vars(self), separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Shut | None:
        """Parse a line; None if it is damaged, as the last line may be after a power cut."""
        with contextlib.suppress(ValueError, TypeError):
            read = cls(**json.loads(line))
            good = read.event in get_args(Event) and read.kind in get_args(Kind)
            if good and isinstance(read.id, str) and isinstance(read.name, str):
                return read
        return None


class Journal:
    """The journal in one file, readable by its owner alone.

    Args:
        path: the file; created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, events: Sequence[Shut]) -> None:
        """Add lines, synced to the disk.

        Raises:
            StateError: they cannot be written.
        """
        if not events:
            return
        lines = b"".join(event.to_line() for event in events)
        try:
            self._write(lines)
        except OSError as error:
            raise StateError(
                f"journal {self.path}: {error.strerror}: nothing was changed, because a restore "
                "would undo a revocation that is not in the journal"
            ) from error

    def _write(self, lines: bytes) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self.path, flags, 0o600)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # the last line was cut short by a power cut
            try:
                if os.write(file, lines) != len(lines):
                    raise OSError(28, "no room for a line")
                os.fsync(file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
        if not size:
            own_as_folder(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def read(self) -> tuple[list[Shut], int]:
        """Every line in order, and how many could not be read.

        Raises:
            StateError: the file is there but cannot be read.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise StateError(f"journal {self.path}: {error.strerror}") from error
        lines = [line for line in raw.split(b"\n") if line.strip()]
        events = [Shut.from_line(line) for line in lines]
        good = [event for event in events if event is not None]
        return good, len(events) - len(good)


def last(events: Iterable[Shut]) -> dict[tuple[Kind, str], Shut]:
    """The last event of each thing."""
    return {(event.kind, event.id): event for event in events}
