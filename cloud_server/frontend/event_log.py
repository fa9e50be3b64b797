"""The event log: a JSON line for each event of a request, from which metrics can be recomputed.

A thread encodes and writes; a full disk or a slow one drops lines and counts them, never a request.
`cloud_server/recompute.py` reads it; `docs/service.md` says what the lines hold.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from protos.process.files import writing
from protos.process.settings import installed_version

BEGIN: Final = "begin"
"""Event of a process's start; the counts of /metrics begin there too."""
_MOST_WAITING = 65_536
_EVERY_S = 0.25
_LAST_WORDS_S = 2.0


class EventLog:
    """Writes events.

    Args:
        path: the file; the older half is the same name with `.1`.
        most_bytes: of both halves.
        on_drop: called with the number of events that could not be written, from any thread.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(
        self, path: Path, most_bytes: int, on_drop: Callable[[int], None] = lambda _: None
    ) -> None:
        self._path, self._half, self._on_drop = path, most_bytes // 2, on_drop
        self._waiting: deque[dict[str, Any]] = deque()
        self._stop = threading.Event()
        self._encoder = msgspec.json.Encoder()
        with writing(f"event log {path}"):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._size = os.fstat(self._file.fileno()).st_size
        self.note(BEGIN, version=installed_version(), pid=os.getpid())
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def note(self, event: str, **facts: Any) -> None:
        """Take an event; its time is now."""
        if len(self._waiting) >= _MOST_WAITING:
            self._on_drop(1)
            return
        facts["t"], facts["e"] = time.time(), event
        self._waiting.append(facts)

    def close(self) -> None:
        """Write what waits, but wait no longer than two seconds."""
        self._stop.set()
        self._thread.join(_LAST_WORDS_S)

    def _run(self) -> None:
        while True:
            last = self._stop.wait(_EVERY_S)
            self._write()
            if last:
                with contextlib.suppress(OSError):
                    self._file.close()
                return

    def _write(self) -> None:
        """Write what has come, a block at a time."""
        while self._waiting:
            lines: list[bytes] = []
            size = 0
            while self._waiting and size < self._half // 8:
                lines.append(self._encoder.encode(self._waiting.popleft()) + b"\n")
                size += len(lines[-1])
            try:
                if self._size and self._size + size > self._half:
                    self._turn()
                written = self._file.write(b"".join(lines))
                self._size += written
                if written < size:
                    raise OSError("the disk is full")
            except (OSError, ValueError):
                self._on_drop(len(lines))

    def _turn(self) -> None:
        """The newer half becomes the older one."""
        self._file.close()
        os.replace(self._path, older_half(self._path))
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        self._size = 0


def older_half(path: Path) -> Path:
    """Where the older half of an event log is."""
    return path.with_name(path.name + ".1")
