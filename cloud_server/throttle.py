"""Bounded rates: of log lines of one kind (`Throttle`), and of what one caller may do (`Buckets`).

The clock is passed in.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]


class Throttle:
    """Lets a few events of each kind pass per interval; the others are counted, then told once.

    Args:
        most: events of a kind that pass in an interval.
        told: called at an interval's end with a kind and how many of it did not pass.
        interval_s: its length, seconds.
    """

    def __init__(self, most: int, told: Callable[[str, int], None], interval_s: float) -> None:
        self._most, self._told, self._interval_s = most, told, interval_s
        self._seen: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def passes(self, kind: str) -> bool:
        """Count one event; returns whether it passes. Call it on the event loop.

        Args:
            kind: one of a few; never a text that a stranger chooses.
        """
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self.flush)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        return self._seen[kind] <= self._most

    def flush(self) -> None:
        """End the interval: report what was only counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seen, self._seen = self._seen, {}
        for kind, count in seen.items():
            if count > self._most:
                self._told(kind, count - self._most)


class Buckets:
    """One bucket of tokens for each caller.

    Args:
        per_s: tokens that flow into each bucket a second; 0 for no bound.
        burst: tokens that a bucket holds.
        most: callers that are remembered; the longest unused are forgotten, and begin anew.
        clock: seconds, monotonic.
    """

    def __init__(
        self, per_s: float, burst: float, most: int = 65536, clock: Clock = time.monotonic
    ) -> None:
        self._per_s, self._burst, self._most, self._clock = per_s, burst, most, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def take(self, caller: str, amount: float = 1.0) -> float:
        """Take tokens if the bucket holds them; else take none and say when it will, in seconds.

        More than a bucket holds can be taken from a full one; it is in debt then.

        Returns:
            0 if they were taken.
        """
        if not self._per_s:
            return 0.0
        now = self._clock()
        left, at = self._left.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_s)
        wait_s = max(0.0, min(amount, self._burst) - left) / self._per_s
        self._left[caller] = (left if wait_s else left - amount, now)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return wait_s
