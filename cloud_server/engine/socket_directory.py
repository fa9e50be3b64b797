"""The folder of the engine's socket: only its owner opens it, one front end uses it at a time.

A front end that is killed leaves its temporary folder behind. The next one removes it: a folder
whose lock nobody holds belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from pathlib import Path
from typing import IO

from protos.errors import ConfigError
from protos.process.files import temporary_folder

_MAX_SOCKET_PATH = 100
_PREFIX = "neural-bridge-"
_LONGEST = "/engine-99.sock"
_ELSEWHERE = "give --engine-socket-dir, a short path that this user may write (or set TMPDIR)"


class SocketDirectory:
    """An owner-only directory for sockets, held by one front end at a time.

    Args:
        path: created if it does not exist; `None` makes a temporary one, removed by `close`.

    Raises:
        ConfigError: others can open it, it is not ours, its path is too long for a socket, or
            another front end uses it.
    """

    def __init__(self, path: Path | None) -> None:
        self._temporary = path is None
        if path is None:
            path = temporary_folder(_PREFIX, _ELSEWHERE)
            _remove_dead(path.parent)
        else:
            path = path.absolute()
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"engine socket directory {path}: {error.strerror}") from error
            entry = path.stat()
            if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.geteuid():
                raise ConfigError(f"engine socket directory {path} belongs to another user")
            if entry.st_mode & 0o077:
                raise ConfigError(
                    f"engine socket directory {path} is open to others; run chmod 700 on it"
                )
        self.path = path
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH - len(_LONGEST):
            self._remove()
            raise ConfigError(
                f"engine socket directory {path}: the path is too long for a socket "
                f"(at most {_MAX_SOCKET_PATH - len(_LONGEST)} bytes): {_ELSEWHERE}"
            )
        lock = path / "lock"
        draft = path / "lock.new" if self._temporary else lock
        try:
            self._lock: IO[bytes] = draft.open("wb")
        except OSError as error:
            self._remove()
            raise ConfigError(
                f"engine socket directory {path} cannot be written: {error.strerror or error}: "
                f"{_ELSEWHERE}"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                f"engine socket directory {path} is in use by another cloud-server"
            ) from error
        if self._temporary:
            draft.rename(lock)  # so nobody ever finds it without its holder, and removes it

    def address_of(self, engine: int) -> str:
        """Address at which the front end listens for an engine, by its number."""
        return str(self.path / (f"engine-{engine}.sock" if engine else "engine.sock"))

    def close(self) -> None:
        """Let go of the directory."""
        self._lock.close()
        self._remove()

    def _remove(self) -> None:
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)


def _remove_dead(where: Path) -> None:
    """Remove this user's folders whose front ends were killed."""
    for path in where.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # no lock yet, held, another user's, or just removed
            entry = path.lstat()
            if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.geteuid():
                continue
            with (path / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
