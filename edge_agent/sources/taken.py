"""Which files of a watched folder were taken, on the disk, so that a restart gives none again.

One JSON line a file: name, inode, time of its last change, size. Lines are appended; the file is
written anew when most of its lines are no longer needed. A line that was cut off is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Collection
from pathlib import Path

from protos.process.files import write_file

MOST = 100_000
"""Files that are remembered of one folder, the newest ones."""
_SLACK = 1000
Mark = tuple[int, int, int]
"""Which file a name stands for: inode, time of its last change, size."""


class TakenFiles:
    """The memory of one folder; a disk that takes nothing costs only the memory.

    Args:
        folder: where memories are kept.
        of: the watched folder.
    """

    def __init__(self, folder: Path, of: Path) -> None:
        name = hashlib.sha256(os.fsencode(of.absolute())).hexdigest()[:16]
        self._file = folder / f"{name}.jsonl"
        self._lines, self._lock = 0, threading.Lock()
        self.marks: dict[str, Mark] = {}
        with contextlib.suppress(OSError):
            for line in self._file.read_text(errors="replace").splitlines():
                self._lines += 1
                with contextlib.suppress(ValueError, TypeError):
                    name, inode, changed_ns, size = json.loads(line)
                    self._put(str(name), (int(inode), int(changed_ns), int(size)))

    def add(self, name: str, mark: Mark) -> None:
        """Remember a file."""
        with self._lock:
            self._put(name, mark)
            self._lines += 1
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with self._file.open("a") as file:
                    file.write(_line(name, mark))

    def _put(self, name: str, mark: Mark) -> None:
        self.marks.pop(name, None)
        self.marks[name] = mark
        while len(self.marks) > MOST:
            del self.marks[next(iter(self.marks))]

    def tidy(self, there: Collection[str]) -> None:
        """Write the file anew without the files that are gone, if most of its lines are of such.

        Args:
            there: names of the folder's files now. A folder that is not mounted has none, so a few
                are kept.
        """
        with self._lock:
            if self._lines <= 2 * len(there) + _SLACK:
                return
            self.marks = {name: mark for name, mark in self.marks.items() if name in there}
            text = "".join(_line(name, mark) for name, mark in self.marks.items())
            with contextlib.suppress(OSError):
                write_file(self._file, text.encode())
            self._lines = len(self.marks)


def _line(name: str, mark: Mark) -> str:
    return json.dumps([name, *mark]) + "\n"
