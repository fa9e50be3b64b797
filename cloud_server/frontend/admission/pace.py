"""Measures how fast requests end, and tells refused callers when to retry."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

_MEMORY_S = 5.0
_LEAST_ENDED = 8.0
_LONGEST_S = 30.0


class Pace:
    """The rate at which requests end, measured while others wait.

    Args:
        clock: seconds.
        chance: a random number from 0 to 1.
    """

    def __init__(
        self, clock: Callable[[], float], chance: Callable[[], float] = random.random
    ) -> None:
        self._clock, self._chance = clock, chance
        self._ended = self._seconds = 0.0
        self._last = self._room = clock()
        self._busy = False

    @property
    def per_s(self) -> float:
        """Requests that end a second; 0 while too few have ended to tell."""
        return self._ended / self._seconds if self._seconds > 0 else 0.0

    def ended(self, others_wait: bool) -> None:
        """Note that a request has ended, and whether others wait now."""
        now = self._clock()
        if self._busy:
            passed = now - self._last
            fade = math.exp(-passed / _MEMORY_S)
            self._ended, self._seconds = self._ended * fade + 1.0, self._seconds * fade + passed
        self._last, self._busy = now, others_wait

    def wait_s(self, ahead: float) -> float:
        """Time for this many requests to end, seconds; 0 while it cannot be estimated."""
        if self._ended < _LEAST_ENDED or self._seconds <= 0:
            return 0.0
        return ahead * self._seconds / self._ended

    def come_back_s(self, over_s: float) -> float:
        """Seconds after which a refused request should be sent again.

        Args:
            over_s: by how many seconds it would wait too long now.

        Refused requests get times one after the other, at the rate at which requests end.
        """
        now, gap = self._clock(), max(self.wait_s(1.0), 1e-3)
        self._room = max(self._room, now + over_s) + gap
        after = self._room - now
        if after > _LONGEST_S:
            after = _LONGEST_S
        return after * (0.75 + 0.5 * self._chance())
