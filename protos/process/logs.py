"""Structured logs: one JSON object a line on standard error, with the request id if there is one.

Logging never fails and never holds up the work: lines go through a bounded queue to a thread of
their own; a line that cannot be written is dropped and counted. Standard output is for results and
the readiness line.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

Logger = Any
"""A structlog bound logger (structlog types its loggers as Any)."""

_MOST_LINES = 4096
_IDLE_S = 5.0
_LAST_WORDS_S = 2.0


class Stream(Protocol):
    """Where lines go: the methods of a text file that are used here."""

    def write(self, text: str, /) -> Any:
        """Write."""

    def flush(self) -> Any:
        """Flush."""


class Lines:
    """A text file for log lines that never raises and never waits for its reader.

    A stream with a descriptor is written by a thread, so that a reader that hangs holds up nobody;
    any other stream (of a test) is written at once.

    Args:
        stream: where lines go; `None` drops them all.
        on_drop: called for every line that could not be written, from any thread.
    """

    def __init__(self, stream: Stream | None, on_drop: Callable[[], None] = lambda: None) -> None:
        self._stream, self._on_drop = stream, on_drop
        self._descriptor = _descriptor(stream)
        self._waiting: deque[bytes] = deque()
        self._news = threading.Condition()
        self._writer: threading.Thread | None = None
        self._begun = ""
        self._torn = False
        self.dropped = 0

    def write(self, text: str) -> int:
        """Take text; whole lines are passed on."""
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self._put(line + "\n")
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines leave by themselves."""

    def forked(self) -> None:
        """Start anew after a fork: the writer thread and its waiting lines are the parent's."""
        self._waiting, self._news, self._writer = deque(), threading.Condition(), None

    def drain(self, timeout_s: float = _LAST_WORDS_S) -> None:
        """Wait until every line has left, but no longer than `timeout_s`."""
        with self._news:
            self._news.wait_for(lambda: not self._waiting, timeout_s)

    def _put(self, line: str) -> None:
        if self._descriptor is None:
            try:
                if self._stream is None:
                    raise ValueError("no stream")
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError, AttributeError):
                self._drop()
            return
        with self._news:
            full = len(self._waiting) >= _MOST_LINES
            if not full:
                self._waiting.append(line.encode("utf-8", "backslashreplace"))
                if self._writer is None:
                    self._writer = threading.Thread(target=self._run, name="logs", daemon=True)
                    self._writer.start()
                self._news.notify_all()
        if full:
            self._drop()

    def _drop(self) -> None:
        self.dropped += 1
        self._on_drop()

    def _run(self) -> None:
        while True:
            with self._news:
                if not self._news.wait_for(lambda: bool(self._waiting), _IDLE_S):
                    self._writer = None
                    return
                line = self._waiting[0]
            try:
                self._send(b"\n" + line if self._torn else line)
            except (OSError, ValueError):
                self._drop()
            with self._news:
                self._waiting.popleft()
                self._news.notify_all()

    def _send(self, line: bytes) -> None:
        rest = memoryview(line)
        self._torn = False
        while rest:
            try:
                rest = rest[os.write(self._fileno(), rest) :]
            except BlockingIOError:  # somebody made it non-blocking
                select.select([], [self._fileno()], [], 1.0)
            except OSError:
                self._torn = len(rest) < len(line)
                raise

    def _fileno(self) -> int:
        found = _descriptor(self._stream)  # read each time: the number of a closed stream is reused
        if found is None:
            raise ValueError("the stream is closed")
        return found


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


class _Both:
    """Two streams, each of which gets every line."""

    def __init__(self, *streams: Stream) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines leave by themselves."""


class _BesideTheBar:
    """Standard error, written through the progress bar so that neither breaks the other."""

    def write(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text.rstrip("\n"), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class _FromLibraries(logging.Handler):
    """Turns libraries' log records, and Python's warnings, into events like ours."""

    def __init__(self, log: Logger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        with contextlib.suppress(Exception):  # a library's broken message must end nothing
            self._log.log(
                record.levelno,
                "library",
                logger=record.name,
                message=record.getMessage(),
                exc_info=record.exc_info or None,
            )


_current: Lines | None = None
_least = logging.INFO


def configure(
    level: str = "info",
    component: str = "",
    stream: Stream | None = None,
    *,
    bar: bool = False,
    on_drop: Callable[[], None] = lambda: None,
    also: Stream | None = None,
) -> Logger:
    """Set the process's logging up and return its logger.

    Args:
        level: debug, info, warning or error.
        component: the part of the product that logs; stands in every line.
        stream: where lines go; standard error by default; nowhere if that is closed.
        bar: a progress bar shares standard error.
        on_drop: called for every line that could not be written.
        also: gets every line too; must never raise and never wait.
    """
    import structlog
    from structlog.tracebacks import ExceptionDictTransformer

    global _current, _least
    _least = getattr(logging, level.upper())
    target: Stream | None = stream if stream is not None else sys.stderr
    if bar and stream is None:
        target = _BesideTheBar()
    _current = Lines(target, on_drop)
    file = _current if also is None else _Both(_current, also)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without local variables: these may be keys, codes and passphrases.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_least),
        logger_factory=structlog.WriteLoggerFactory(file=file),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger(component=component)


def level_is(level: int) -> bool:
    """Whether lines of this level (`logging.INFO` and so on) are written; saves making them."""
    return level >= _least


def set_level(level: str) -> None:
    """Change this process's log level.

    Args:
        level: debug, info, warning or error.
    """
    import structlog

    global _least
    _least = getattr(logging, level.upper())
    wrapper = structlog.make_filtering_bound_logger(_least)
    structlog.configure(**structlog.get_config() | {"wrapper_class": wrapper})


def adopt_libraries(log: Logger) -> None:
    """Log what libraries say by Python's `logging` and `warnings` as events, from now on.

    For a process's own start: it changes the root logger.
    """
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _FromLibraries)]:
        root.removeHandler(old)
    root.addHandler(_FromLibraries(log))
    logging.captureWarnings(True)


def dropped() -> int:
    """Lines of this process that could not be written."""
    return _current.dropped if _current is not None else 0


def forked() -> None:
    """Go on in a process that was forked from one that logs."""
    if _current is not None:
        _current.forked()


@atexit.register
def drain() -> None:
    """Wait until the waiting lines have left; call it before the process's last output or end."""
    if _current is not None:
        _current.drain()
