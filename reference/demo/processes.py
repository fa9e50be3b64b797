"""Child processes: started, waited for, read, and ended, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from protos.process import children

_TAIL_LINES = 15
_POLL_S = 0.1
_TERMINATE_S = 25.0


class ChildError(RuntimeError):
    """A child ended too early, never became ready, or failed; the message holds its last words."""


class Child:
    """One child process, which never outlives this one, its standard error in a log file.

    Use as a context manager.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Does not start it yet; the `with` block does.

        Args:
            name: its name in messages.
            arguments: arguments of `python -m`, the module first.
            log: file for standard error.
            environment: added to this process's own.
        """
        self.name, self.log = name, log
        self._arguments = children.command(*arguments)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str]
        self._reader: threading.Thread
        self._lines: list[str] = []
        self._news = threading.Condition()

    def __enter__(self) -> Child:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as stderr:
            self._process = subprocess.Popen(
                self._arguments,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=self._environment,
            )
        self._reader = threading.Thread(target=self._read, name=f"{self.name}-out", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_TERMINATE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(_TERMINATE_S)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def ready(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the first line of standard output that is a JSON object, and return it.

        Raises:
            ChildError: the child ended, or said nothing in time.
        """
        deadline = time.monotonic() + timeout_s
        seen = 0
        while True:
            with self._news:
                if len(self._lines) == seen:
                    self._news.wait(_POLL_S)
                fresh, seen = self._lines[seen:], len(self._lines)
            for line in fresh:
                found = _object(line)
                if found is not None:
                    return found
            if not fresh and self._process.poll() is not None:
                raise ChildError(self._last_words(f"ended with status {self._process.returncode}"))
            if time.monotonic() > deadline:
                raise ChildError(self._last_words(f"was not ready after {timeout_s:.0f} s"))

    def wait(self, tick: Callable[[], None], timeout_s: float) -> int:
        """Wait for the child to end, calling `tick` ten times a second, and return its status.

        Raises:
            ChildError: it has not ended in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                status = self._process.wait(_POLL_S)
                tick()
                return status
            except subprocess.TimeoutExpired:
                tick()
            if time.monotonic() > deadline:
                raise ChildError(self._last_words(f"was still running after {timeout_s:.0f} s"))

    def _last_words(self, what: str) -> str:
        try:
            said = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        except OSError:
            said = []
        return "\n  ".join([f"{self.name} {what}; the end of {self.log}:", *said])

    def check(self, status: int) -> None:
        """Accept status 0.

        Raises:
            ChildError: any other status.
        """
        if status != 0:
            raise ChildError(self._last_words(f"ended with status {status}"))


def finished(
    name: str,
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> str:
    """Run a command to its end; returns its standard output.

    Args:
        name: its name in messages.
        arguments: arguments of `python -m`, the module first.
        log: file for standard error, appended.
        environment: added to this process's own.
        timeout_s: longest run.

    Raises:
        ChildError: it failed, or took too long; the message has its last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            children.command(*arguments),
            capture_output=True,
            text=True,
            env={**os.environ, **(environment or {})},
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"{name} was still running after {timeout_s:.0f} s") from error
    with log.open("a") as file:
        file.write(done.stderr)
    if done.returncode != 0:
        said = done.stderr.splitlines()[-_TAIL_LINES:]
        raise ChildError("\n  ".join([f"{name} ended with status {done.returncode}:", *said]))
    return done.stdout


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
