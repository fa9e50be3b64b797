"""Results of a run's stages, kept in files; two processes may share them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protos.process.files import write_file

FORMAT = 2


class TakenError(Exception):
    """Another process is working on this stage."""


class Keep:
    """The files of one run.

    Attributes:
        folder: where they are.
        waits: whether to wait for a stage that another process works on; else it is refused.
        spent: by stage, the `seconds` and `cpu_seconds` that it took (with processes that it
            started, without stages inside it).
    """

    def __init__(self, folder: Path, run: str, say: Callable[[str], None]) -> None:
        """Makes the folder."""
        self.folder, self.waits = folder, True
        self.spent: dict[str, dict[str, float]] = {}
        self._run, self._say = run, say
        self._inner = [(0.0, 0.0)]
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, made_for: str, make: Callable[[], Any]) -> Any:
        """The result of `make`, or its kept result for the same models, bundle and pictures.

        Raises:
            TakenError: another process is making it, and this one does not wait.
        """
        key = hashlib.sha256(f"{FORMAT} {made_for} {self._run}".encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{key}.json"
        if not path.exists():
            with path.with_suffix(".lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | (0 if self.waits else fcntl.LOCK_NB))
                except BlockingIOError as error:
                    raise TakenError(name) from error
                if not path.exists():
                    self._make(path, make)
        kept = json.loads(path.read_text())
        if name not in self.spent:
            self._say(f"{name}: {path}")
        self.spent[name] = kept["spent"]
        return kept["found"]

    def _make(self, path: Path, make: Callable[[], Any]) -> None:
        started, cpu = time.monotonic(), _cpu()
        self._inner.append((0.0, 0.0))
        try:
            found = make()
        finally:
            inner = self._inner.pop()
        wall, used = time.monotonic() - started, _cpu() - cpu
        outer = self._inner.pop()
        self._inner.append((outer[0] + wall, outer[1] + used))
        spent = {
            "seconds": round(wall - inner[0], 1),
            "cpu_seconds": round(used - inner[1], 1),
        }
        write_file(path, json.dumps({"spent": spent, "found": found}).encode())


def _cpu() -> float:
    """CPU seconds of this process and of those it started and has waited for."""
    both = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)
