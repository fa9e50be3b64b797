"""The newest log lines on the disk, in files whose size is bounded.

A thread of its own writes them: a disk that is full, hangs or breaks costs lines, never a frame.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
from collections import deque
from datetime import datetime
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path

NAME = "agent.jsonl"
_FILES = 4
_MOST_WAITING = 4096
_LONGEST_LINE = 32 << 10
_TAIL_LINES, _TAIL_BYTES = 200, 32 << 10


class LogRing:
    """A stream for log lines that keeps the newest ones in four files.

    Args:
        folder: of the files.
        most_bytes: of all files together.

    Attributes:
        dropped: lines that did not reach the disk.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.dropped = folder, 0
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._waiting: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_WAITING)
        self._queued = _Queued(self)
        self._files = _Files(self, folder / NAME, most_bytes // _FILES)
        self._listener = QueueListener(self._waiting, self._files)
        self._listener.start()
        self._begun = ""
        self._closed = threading.Event()

    @property
    def waiting(self) -> queue.Queue[logging.LogRecord]:
        """Lines that the thread has not written yet."""
        return self._waiting

    def write(self, text: str) -> int:
        """Take text; whole lines are passed on. Never raises, never waits."""
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            if len(line) > _LONGEST_LINE:
                line = json.dumps({"event": "long_line", "begins": line[:1000]})
            self._tail.append(line)
            if not self._closed.is_set():
                self._queued.handle(logging.LogRecord("", 0, "", 0, line, None, None))
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines leave by themselves."""

    def tail(self) -> list[str]:
        """The newest lines of this process, 32 KiB at most."""
        return bounded(list(self._tail))

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits and end the thread; a disk that hangs keeps its lines."""
        self._closed.set()
        ending = threading.Thread(target=self._end, daemon=True)
        ending.start()
        ending.join(timeout_s)

    def _end(self) -> None:
        self._listener.stop()
        self._files.close()


def newest(folder: Path) -> list[str]:
    """The newest lines that an earlier process left on the disk, 32 KiB at most."""
    found: list[str] = []
    for name in (NAME, f"{NAME}.1"):
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
            found = lines[-_TAIL_LINES:] + found
        if len(found) >= _TAIL_LINES:
            break
    return bounded(found)


def tail(folder: Path, lines: int, since_s: float, most_bytes: int) -> list[str]:
    """The newest lines on the disk.

    Args:
        folder: of the files.
        lines: at most so many.
        since_s: only lines from then on, seconds since 1970.
        most_bytes: of all of them.
    """
    found: deque[str] = deque()
    for name in (NAME, *(f"{NAME}.{number}" for number in range(1, _FILES))):
        text: list[str] = []
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most_bytes))
            text = file.read(most_bytes).decode(errors="replace").splitlines()
            if size > most_bytes:
                del text[:1]  # its beginning was cut off
        for line in reversed(text):
            most_bytes -= len(line.encode(errors="replace")) + 1
            if len(found) >= lines or most_bytes < 0 or _made_s(line) < since_s:
                return list(found)
            found.appendleft(line)
    return list(found)


def _made_s(line: str) -> float:
    """When a line was logged, seconds since 1970; infinite if it does not say."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        told = str(json.loads(line)["timestamp"]).replace("Z", "+00:00")
        return datetime.fromisoformat(told).timestamp()
    return float("inf")


def bounded(lines: list[str]) -> list[str]:
    """The last of the lines that fit into the bounds of a tail."""
    kept: list[str] = []
    room = _TAIL_BYTES
    for line in reversed(lines[-_TAIL_LINES:]):
        room -= len(line.encode(errors="replace")) + 1
        if room < 0:
            break
        kept.append(line)
    return kept[::-1]


class _Queued(QueueHandler):
    """Puts lines into the queue; a full queue drops them."""

    def __init__(self, ring: LogRing) -> None:
        super().__init__(ring.waiting)
        self._ring = ring

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        self._ring.dropped += 1


class _Files(RotatingFileHandler):
    """The files; after an error the file is opened anew for the next line."""

    def __init__(self, ring: LogRing, path: Path, most_bytes: int) -> None:
        super().__init__(
            path, maxBytes=most_bytes, backupCount=_FILES - 1, encoding="utf-8",
            errors="backslashreplace", delay=True,
        )  # fmt: skip
        self._ring = ring

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        self._ring.dropped += 1
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()
