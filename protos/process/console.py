"""What every console script does around its command: streams, exit codes, missing packages.

`run` is the wrapper of every `main`.

- A standard stream that was closed before the start counts as /dev/null.
- Writing to standard error never fails or waits for long: what cannot be written is lost.
- Standard output carries results: if its reader is gone the process ends as a shell expects (141),
  and if there is no room it ends with `DiskFullError`.
"""

from __future__ import annotations

import asyncio
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from protos.errors import ERRORS, BridgeError, ConfigError, DiskFullError
from protos.process import logs, threads
from protos.process.files import NO_ROOM, settle_temporary
from protos.process.stopping import Stopped

INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141
_PATIENCE_S = 2.0
"""How long to wait for a full pipe; after one such wait, not again until it moves."""
OURS = ("protos", "projector", "edge_agent", "cloud_server", "reference")


class ReaderGoneError(Exception):
    """The reader of standard output is gone."""


def run(program: str, extra: str, command: Callable[[], int]) -> int:
    """Run a console script's command and turn its end into an exit code.

    Args:
        program: its name, in front of every complaint.
        extra: the extra of this distribution that brings what the program imports.
        command: parses the arguments and does the work; returns the exit code.

    Returns:
        What the command returned, or the exit code of the error that ended it.

    Raises:
        SystemExit: the command raised it (`--help`, `--version`) and its output was written.
    """
    quiet_libraries()
    settle_temporary(os.environ)
    threads.wait_politely()
    with _streams():
        try:
            try:
                return command()
            finally:
                sys.stdout.flush()
        except BridgeError as error:
            return complain(program, error)
        except ModuleNotFoundError as error:
            return lacks(program, extra, error)
        except Stopped as stopped:  # it has said how to go on
            return int(str(stopped.code))
        except KeyboardInterrupt:
            say(f"{program}: interrupted")
            return INTERRUPTED
        except asyncio.CancelledError:
            return TERMINATED
        except ReaderGoneError:
            return BROKEN_PIPE
        except OSError as error:
            return complain(program, typed(error))


def typed(error: OSError) -> BridgeError:
    """An error of the operating system as one of ours."""
    where = f"{error.filename}: " if error.filename else ""
    kind = DiskFullError if error.errno in NO_ROOM else ConfigError
    return kind(f"{where}{error.strerror or error}")


def lacks(program: str, extra: str, error: ModuleNotFoundError) -> int:
    """Say which package an install lacks; returns the exit code.

    Raises:
        ModuleNotFoundError: a module of our own is missing.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", *OURS):
        raise error
    missing = f"needs the package {package}: pip install 'neural-bridge[{extra}]'"
    return complain(program, ConfigError(missing))


def complain(program: str, error: BridgeError) -> int:
    """Say on standard error why a program ends, after its logs; returns its exit code."""
    say(f"{program}: {error.name}: {error.message}")
    return error.exit_code


def say(text: str) -> None:
    """Write one line to standard error, if that is possible."""
    logs.drain()
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()


def printable(value: object) -> str:
    """Text for a terminal: control characters are shown as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )


def exit_codes() -> str:
    """One line per error that can end a program, for the end of a `--help`."""
    return "\n".join(f"  {e.exit_code:<3} {e.name}: {e.summary}" for e in ERRORS.values())


def ends(program: str, good: str = "all went well") -> str:
    """The end of a command's `--help`: what exit code 0 means, and where the others are listed.

    Args:
        program: whose `--help` lists them.
        good: what exit code 0 means.
    """
    return f"exit codes: 0 if {good}, else the error's (see {program} --help)"


def quiet_libraries() -> None:
    """Keep libraries' bars and notes off standard error; call it before they are imported."""
    for name, value in (
        ("GRPC_VERBOSITY", "NONE"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("ORT_DISABLE_TELEMETRY", "1"),  # it logs failures, and reports to its maker
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TRANSFORMERS_VERBOSITY", "error"),
    ):
        os.environ.setdefault(name, value)


# ---------------------------------------------------------------------- the standard streams


class _Error(io.TextIOBase):
    """Standard error that never fails, never buffers, and gives up on a full pipe."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._descriptor = stream, stream.fileno()
        self._stalled = False

    def write(self, text: str) -> int:
        rest = text.encode("utf-8", "backslashreplace")
        with suppress(OSError):
            while rest and self._has_room():
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
        return len(text)

    def _has_room(self) -> bool:
        """Whether the next write returns at once: its reader may have stopped reading for good."""
        asked = select.poll()
        asked.register(self._descriptor, select.POLLOUT)
        self._stalled = not asked.poll(0.0 if self._stalled else 1000 * _PATIENCE_S)
        return not self._stalled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def fileno(self) -> int:
        return int(self._descriptor)

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


class _Output(io.TextIOBase):
    """Standard output with typed errors; after a failure its buffer is discarded."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._try(lambda: self._stream.write(text)))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except OSError as error:
            # The interpreter flushes once more at its end; that must not fail again.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            if isinstance(error, BrokenPipeError):
                raise ReaderGoneError("standard output: its reader is gone") from error
            kind = DiskFullError if error.errno in NO_ROOM else ConfigError
            raise kind(f"standard output cannot be written: {error.strerror or error}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._stream.encoding)


@contextmanager
def _streams() -> Iterator[None]:
    """Install standard streams that exist and behave; streams of a test are left alone."""
    _open_closed()
    before = sys.stdout, sys.stderr
    if _is_file(sys.stdout):
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout = _Output(sys.stdout)
    if _is_file(sys.stderr):
        sys.stderr = _Error(sys.stderr)
    try:
        yield
    finally:
        logs.drain()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Put /dev/null where a standard stream was closed, so that no other file takes its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def _is_file(stream: Any) -> bool:
    try:
        return isinstance(stream.fileno(), int) and not isinstance(stream, _Error | _Output)
    except (OSError, ValueError, AttributeError):
        return False
