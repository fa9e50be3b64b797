"""The spool's own clock: it goes on over restarts, and no jump of the wall clock moves it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.capture_time import SET_SINCE_S


def boot_id() -> str:
    """This boot's id; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def since_boot() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass
class SpoolClock:
    """Seconds that count while the device is on.

    Time switched off is only known from the wall clock, which may be wrong by years. So it counts
    for half the age limit at most: no jump makes a frame of the last hours too old.

    Attributes:
        boot: id of this boot.
        since_boot: seconds since boot.
        wall: seconds since 1970.
    """

    boot: str = field(default_factory=boot_id)
    since_boot: Callable[[], float] = since_boot
    wall: Callable[[], float] = time.time
    _offset: float = field(default=0.0, init=False, repr=False)

    def now(self) -> float:
        """The time, seconds."""
        return self._offset + self.since_boot()

    def save(self) -> str:
        """The reading that `restore` goes on from."""
        return json.dumps([self.now(), self.boot, self.since_boot(), self.wall()])

    def restore(self, saved: str, least: float, limit_s: float) -> None:
        """Go on from a saved reading.

        Args:
            saved: from `save`; anything else is passed over.
            least: the clock is never behind this, seconds.
            limit_s: the age limit of frames, seconds.
        """
        passed = 0.0
        try:
            then, boot, booted, wall = json.loads(saved)
            then, booted, wall = float(then), float(booted), float(wall)
            if boot and boot == self.boot:
                passed = max(0.0, self.since_boot() - booted)
            else:
                off = self.wall() - wall if min(wall, self.wall()) > SET_SINCE_S else 0.0
                passed = max(self.since_boot(), min(off, limit_s / 2))
                passed = min(passed, limit_s / 2)
        except (ValueError, TypeError):
            then = least
        self._offset = max(then + passed, least) - self.since_boot()
