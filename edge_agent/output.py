"""The file of records, one JSON line each; also tells which questions it already answers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from edge_agent.record import AnswerRecord
from edge_agent.sources import Capture
from protos.errors import ConfigError, DiskFullError
from protos.process.files import expanded, without_mark
from protos.process.folders import open_file


class RecordWriter:
    """Appends records to a file, or to standard output for `-`, one line each.

    A line that an earlier run left half written is ended first. A pipe or a device is written to
    as standard output is: what it took cannot be read again.

    Raises:
        ConfigError: the file cannot be opened for writing, or is a pipe that nobody reads.
    """

    def __init__(self, output: str) -> None:
        self._output, self._own, self._kept = output, output != "-", False
        self._file: TextIO
        if not self._own:
            self._file = sys.stdout
            return
        try:
            path = expanded(Path(output))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(path)
            self._kept = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
            if _torn(path):
                self._file.write("\n")
        except OSError as error:
            raise ConfigError(
                f"output {output}: cannot be written: {error.strerror or error}"
            ) from error

    def write(self, record: AnswerRecord) -> None:
        """Write one line and flush it, so that a reader sees whole records only.

        Raises:
            DiskFullError: the file cannot take it; the run ends, or later records would be lost.
        """
        try:
            self._file.write(record.to_json() + "\n")
            self._file.flush()
        except OSError as error:
            if not self._own:  # `console` reports a standard output that fails
                raise
            raise DiskFullError(
                f"output {self._output}: the record of {record.capture} cannot be written: "
                f"{error.strerror or error}"
            ) from error

    def place(self) -> str:
        """How far the records go now, for `recorded`; empty for what is no file."""
        if not self._kept:
            return ""
        found = os.fstat(self._file.fileno())
        return json.dumps([found.st_ino, found.st_size])

    def sync(self) -> None:
        """Put the records on the disk; standard output, a pipe or a device has none.

        Raises:
            DiskFullError: the disk does not take them.
        """
        if not self._kept:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DiskFullError(
                f"output {self._output}: cannot be synced: {error.strerror or error}"
            ) from error

    def close(self) -> None:
        """Close the file, if it is one."""
        if self._own:
            with contextlib.suppress(OSError):  # `write` has reported it
                self._file.close()


@dataclass(frozen=True)
class Answered:
    """What an earlier run answered.

    Attributes:
        contents: capture name, question, content digest of each answered record.
        times: for old records without a digest: capture name, question, time of capture.
    """

    contents: frozenset[tuple[str, str, str]] = frozenset()
    times: frozenset[tuple[str, str, float]] = frozenset()

    def and_these(self, waiting: Iterable[AnswerRecord]) -> Answered:
        """These questions too: they wait on the disk for their answers."""
        more = frozenset((each.capture, each.question, each.content) for each in waiting)
        return Answered(self.contents | more, self.times)

    def holds(self, capture: Capture, question: str) -> bool:
        """Whether the question was answered for this very content; the name alone does not do."""
        named = (capture.name, question)
        at = round(capture.captured_at, 6)
        return (*named, capture.content) in self.contents or (*named, at) in self.times


def answered(output: str) -> Answered:
    """The questions that a file of records has answers to, from either model.

    Lines that are no records, such as half a line, are passed over.

    Raises:
        ConfigError: it is standard output or no regular file, cannot be read, or is not UTF-8.
    """
    if output == "-":
        raise ConfigError("resume needs a file: give --output FILE, the one of the run before")
    contents, times = set(), set()
    try:
        with open_file(expanded(Path(output))) as lines:
            for number, line in enumerate(lines):
                text = line if number else without_mark(line, f"output {output}")
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(text)
                    if row["answer"] is None and not row["fallback"]:
                        continue
                    named = (str(row["capture"]), str(row["question"]))
                    if row.get("content"):
                        contents.add((*named, str(row["content"])))
                    else:
                        times.add((*named, float(row["captured_at"])))
    except FileNotFoundError:
        pass  # the first run
    except OSError as error:
        raise ConfigError(f"output {output}: cannot be read: {error.strerror or error}") from error
    return Answered(frozenset(contents), frozenset(times))


def recorded(output: str, since: str) -> set[bytes]:
    """Request ids of a file's records, from a place of `RecordWriter.place` on.

    Args:
        output: the file; standard output, a pipe or a device has none.
        since: that place; empty, or of another file, for all records.

    Raises:
        ConfigError: the file cannot be read.
    """
    found: set[bytes] = set()
    path = expanded(Path(output))
    if output == "-" or (path.exists() and not path.is_file()):
        return found
    try:
        with open_file(path) as lines:
            now = os.fstat(lines.fileno())
            with contextlib.suppress(ValueError, TypeError):
                inode, size = json.loads(since)
                if inode == now.st_ino and size <= now.st_size:
                    lines.seek(size)
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    found.add(bytes.fromhex(json.loads(line)["request_id"]))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"output {output}: cannot be read: {error.strerror or error}") from error
    return found


def _opened(path: Path) -> TextIO:
    """Open an output; a pipe without a reader is refused, never waited for.

    Raises:
        OSError: it cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO and path.is_fifo():
            raise OSError(errno.ENXIO, "it is a pipe that nobody reads: start its reader") from None
        raise
    os.set_blocking(number, True)
    return os.fdopen(number, "a", encoding="utf-8")


def _torn(path: Path) -> bool:
    """Whether a file's last line has no line end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
