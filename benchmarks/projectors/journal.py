"""Keeps finished figures, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Journal:
    """Finished figures: one JSON line per figure; its key is all that determines it."""

    def __init__(self, path: Path, fresh: bool) -> None:
        """Reads it; a line that was cut short is dropped."""
        self.path, self.found, self.seconds = path, {}, 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        whole = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if whole and not whole[-1].endswith(b"\n"):
            os.truncate(path, sum(map(len, whole[:-1])))
            whole = whole[:-1]
        for line in whole:
            entry = json.loads(line)
            self.found[entry["key"]] = entry

    def has(self, key: Sequence[Any]) -> bool:
        """Whether the figure of that key is there."""
        return json.dumps(key) in self.found

    def get(self, key: Sequence[Any], make: Callable[[], Any]) -> Any:
        """The figure of that key, measured if it is not there."""
        name = json.dumps(key)
        if name not in self.found:
            begun = time.perf_counter()
            value = make()
            entry = {"key": name, "seconds": time.perf_counter() - begun, "value": value}
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            self.found[name] = entry
        self.seconds += self.found[name]["seconds"]
        return self.found[name]["value"]
