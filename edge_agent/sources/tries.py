"""Files that an agent was working on when its process ended, on the disk.

A picture can crash a decoder or a runtime in C, or make it hang until the watchdog ends it.
It would come again at every start, so a file that ended `MOST_TRIES` starts is set aside.

One small JSON line, written over in place: the files that are worked on now, and the tries of those
that were worked on when a process ended. It is not synced: a process that ends loses nothing of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MOST_TRIES = 3
"""Starts that a file may end."""
FILE = "tries.json"
_MOST = 64
"""Files whose tries are kept, the newest ones."""
_MOST_BYTES = 1 << 20


class Tries:
    """The tries of one agent; a disk that takes nothing, or another agent there, costs only them.

    Args:
        folder: where they are kept; None: nowhere.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._counts: dict[str, int] = {}
        self._on = Counter[str]()
        self._turn = threading.Condition()
        self._file: int | None = None
        if folder is not None:
            with contextlib.suppress(OSError):
                self._open(folder)

    def set_aside(self, key: str) -> bool:
        """Whether a file ended too many starts.

        Args:
            key: names a file and its version, as `key_of` does.
        """
        return self._counts.get(key, 0) >= MOST_TRIES

    @contextlib.contextmanager
    def on(self, key: str) -> Iterator[None]:
        """A file is worked on in C; from any thread, also within itself.

        A file that ended a start before is worked on alone, so that no other one is blamed with it.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._may(key))
            self._on[key] += 1
            if self._on[key] == 1:
                self._write()
        try:
            yield
        finally:
            with self._turn:
                self._on[key] -= 1
                if not self._on[key]:
                    del self._on[key]
                    self._write()
                self._turn.notify_all()

    def close(self) -> None:
        """Let another process have them; an end of this process does it too."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _may(self, key: str) -> bool:
        others = self._on.keys() - {key}
        return not others or self._counts.keys().isdisjoint({key, *others})

    def _open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        number = os.open(folder / FILE, flags, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raw = os.pread(number, _MOST_BYTES, 0)
        except OSError:
            os.close(number)
            raise
        self._file = number
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            told = json.loads(raw.partition(b"\n")[0])
            counts = {str(key): int(count) for key, count in told["counts"].items()}
            for key in map(str, told["on"]):
                counts[key] = counts.pop(key, 0) + 1
            self._counts = dict(list(counts.items())[-_MOST:])
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        line = json.dumps({"counts": self._counts, "on": list(self._on)}).encode() + b"\n"
        with contextlib.suppress(OSError):
            os.pwrite(self._file, line, 0)
            os.ftruncate(self._file, len(line))


def key_of(path: Path) -> str:
    """Names a file and its version: a file that was written anew is another one.

    Raises:
        OSError: it is gone.
    """
    found = path.stat()
    return f"{path.absolute()} {found.st_mtime_ns} {found.st_size}"
