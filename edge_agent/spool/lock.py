"""One agent for one spool: a lock that ends with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from protos.errors import SpoolError


class Lock:
    """An advisory lock on a file.

    Args:
        path: the file; its content is the holder's process id.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number: int | None = None

    def take(self) -> None:
        """Take the lock; nothing to do if this process has it.

        Raises:
            SpoolError: another process has it.
            OSError: the file cannot be written.
        """
        if self._number is not None and _same(self._number, self._path):
            return
        self.give_back()
        number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(number, 32).decode(errors="replace").strip() or "unknown"
            os.close(number)
            raise SpoolError(
                f"spool {self._path.parent} is used by another agent (process {holder}): give each "
                "agent a --state-dir, or a --spool, of its own"
            ) from error
        self._number = number
        os.ftruncate(number, 0)
        os.pwrite(number, f"{os.getpid()}\n".encode(), 0)

    def give_back(self) -> None:
        """Release the lock."""
        if self._number is not None:
            os.close(self._number)
            self._number = None


def _same(number: int, path: Path) -> bool:
    try:
        mine, there = os.fstat(number), os.stat(path)
    except OSError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
