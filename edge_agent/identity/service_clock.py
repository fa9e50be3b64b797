"""What time it is at the service: its own word, once heard, else this device's clock."""

from __future__ import annotations

import time
from collections.abc import Callable


def since_boot() -> float:
    """Seconds since this device started, sleep included; nobody can set this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ServiceClock:
    """The service's clock, as well as this device knows it.

    Args:
        wall: this device's clock, seconds since 1970; it may be wrong.
        steady: seconds that only ever grow.

    Attributes:
        steady: as given.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot
    ) -> None:
        self._wall, self.steady = wall, steady
        self._ahead: float | None = None

    def heard(self, now_s: float) -> None:
        """The service said what time it is."""
        self._ahead = now_s - self.steady()

    def now(self) -> float:
        """Seconds since 1970."""
        return self._wall() if self._ahead is None else self._ahead + self.steady()
