"""The service's time: from the service's last reply, else from this device's clock."""

from __future__ import annotations

import time
from collections.abc import Callable


def since_boot() -> float:
    """Seconds since this device booted, sleep included; this clock cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ServiceClock:
    """Estimate of the service's clock.

    Args:
        wall: this device's clock, seconds since 1970; it may be wrong.
        steady: a monotonic clock, seconds.

    Attributes:
        steady: as given.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot
    ) -> None:
        self._wall, self.steady = wall, steady
        self._ahead: float | None = None

    def heard(self, now_s: float) -> None:
        """Take the service's time from a reply."""
        self._ahead = now_s - self.steady()

    def now(self) -> float:
        """Seconds since 1970."""
        return self._wall() if self._ahead is None else self._ahead + self.steady()
