"""A bound on bytes in any 24 hours, spread over them, that survives restarts."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from protos.errors import BridgeError
from protos.process.files import write_file

_DAY_S = 86400.0
_AT_ONCE = 0.25
"""Share of the bytes that may go at once; the rest comes in over the day, so that the night, too,
has its share."""


class DayBytes:
    """Bytes that may be spent.

    Args:
        most: in any 24 hours.
        file: keeps what is left over restarts; None: nothing is kept, and the first quarter has to
            come in anew after each.
        now: seconds since 1970. A clock that jumps brings no more than what may go at once.
    """

    def __init__(self, most: int, file: Path | None, now: Callable[[], float] = time.time) -> None:
        self._room, self._file, self._now = _AT_ONCE * most, file, now
        self._per_s = (most - self._room) / _DAY_S
        self._left, self._at = self._read()

    def take(self, size: int) -> bool:
        """Spend bytes; returns whether there were enough."""
        now = self._now()
        passed_s = min(max(0.0, now - self._at), _DAY_S)
        self._left, self._at = min(self._room, self._left + passed_s * self._per_s), now
        enough = size <= self._left
        if enough:
            self._left -= size
        if self._file is not None:
            with contextlib.suppress(BridgeError, OSError):  # then less is left after a restart
                write_file(self._file, json.dumps({"left": self._left, "at": now}).encode())
        return enough

    def _read(self) -> tuple[float, float]:
        now = self._now()
        if self._file is None:
            return 0.0, now
        try:
            found = json.loads(self._file.read_bytes())
            left, at = float(found["left"]), float(found["at"])
        except FileNotFoundError:
            return self._room, now
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0, now
        known = math.isfinite(left) and math.isfinite(at)
        return (min(max(0.0, left), self._room), at) if known else (0.0, now)
