"""A file that grows on the disk as it arrives, so that a download goes on where it broke off."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType


class PartFile:
    """An owner-only file that one download at a time has open.

    Args:
        path: of the file, in a folder that exists; the file is made if need be.

    Raises:
        OSError: it cannot be opened, is no file, or another download has it (EAGAIN).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._file = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(self._file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if not os.path.samestat(found, os.stat(path)):  # finished or removed before the lock
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError:
            self._file.close()
            raise

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return os.fstat(self._file.fileno()).st_size

    def read(self) -> bytes:
        """All bytes that are there."""
        self._file.seek(0)
        return self._file.read()

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def clear(self) -> None:
        """Begin anew."""
        self._file.truncate(0)

    def become(self, path: Path) -> None:
        """Take this name, once all of it is on the disk."""
        os.fsync(self._file.fileno())
        os.replace(self._path, path)

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let others have the file."""
        self._file.close()
