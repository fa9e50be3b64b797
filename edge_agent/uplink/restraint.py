"""Restraint: fewer captures and cheaper points while the device is hot, or frames cost too much.

Two levels rise by one after each window in which a limit was passed, and fall by one after `calm`
windows well below it. Heat first halves the share of the time that the device works, then goes down
the rungs. Energy goes down the rungs first. Frames that wait for long take one rung off new ones.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_agent.device.power import Readings
from edge_agent.metrics import Metrics
from protos.process.logs import Logger

_HIGHEST = 5
_SLICE_S = 0.2
_BEHIND_S, _CAUGHT_UP_S = 60.0, 10.0
"""Age of the oldest frame that waits: above the first one is behind, below the second no more."""


@dataclass
class Limit:
    """One limit and its level.

    Attributes:
        most: what may not be passed; None: no limit.
        well_below: below this it is calm.
        level: 0 for no restraint, up to 5.
        calm: windows in a row that were calm.
    """

    most: float | None
    well_below: float = 0.0
    level: int = 0
    calm: int = 0

    def look(self, value: float | None, calm_windows: int) -> int:
        """Take one window's value; return the change of the level."""
        before = self.level
        if self.most is None or value is None:
            return 0
        if value > self.most:
            self.level, self.calm = min(_HIGHEST, self.level + 1), 0
        elif value < self.well_below:
            self.calm += 1
            if self.calm >= calm_windows:
                self.level, self.calm = max(0, self.level - 1), 0
        else:
            self.calm = 0
        return self.level - before


@dataclass
class Restraint:
    """Holds captures back and lowers points.

    Attributes:
        readings: the newest of the sensors.
        metrics: what is shown.
        log: structured logger.
        joules: most joules for one capture, above what the device takes when idle; None: no limit.
        celsius: highest temperature of the hottest zone; None: no limit.
        oldest_s: age of the oldest frame that waits, seconds.
        clock: seconds, monotonic.
        sleep: waits that many seconds, in the calling thread.
        window_s: how often the limits are looked at, seconds.
        calm_windows: windows well below a limit before its level falls.
    """

    readings: Callable[[], Readings]
    metrics: Metrics
    log: Logger
    joules: float | None = None
    celsius: float | None = None
    oldest_s: Callable[[], float] = lambda: 0.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    window_s: float = 10.0
    calm_windows: int = 3
    _watts: deque[float] = field(default_factory=lambda: deque(maxlen=360), repr=False)
    _spent_j: float = 0.0
    _captures: int = 0
    _looked_at: float | None = None
    _read_at: float = 0.0
    _went_at: float | None = None
    _behind: bool = False

    def __post_init__(self) -> None:
        celsius, joules = self.celsius or 0.0, self.joules or 0.0
        self._heat = Limit(self.celsius, celsius - 5.0)
        self._energy = Limit(self.joules, 0.8 * joules)

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Wait before the next capture; on a worker thread.

        Args:
            stopped: whether the run is to end.
        """
        self._look()
        now = self.clock()
        busy_s = 0.0 if self._went_at is None else now - self._went_at
        until = now + min(60.0, busy_s * (2**self._halvings - 1))
        while (left_s := until - self.clock()) > 0 and not stopped():
            self.sleep(min(_SLICE_S, left_s))
        self._captures += 1
        self._went_at = self.clock()

    @property
    def rungs(self) -> int:
        """How many rungs below the chosen one the next frame is to be sent at."""
        oldest_s = self.oldest_s()
        self._behind = oldest_s > (_CAUGHT_UP_S if self._behind else _BEHIND_S)
        return max(self._energy.level, self._heat.level // 2, int(self._behind))

    @property
    def _halvings(self) -> int:
        """How often the share of the time that the device works is halved."""
        return max(self._heat.level, self._energy.level - 2, 0)

    def _look(self) -> None:
        now, read = self.clock(), self.readings()
        if read.watts is not None:
            self._watts.append(read.watts)
            if self._looked_at is not None:
                self._spent_j += max(0.0, read.watts - min(self._watts)) * (now - self._read_at)
        self._read_at = now
        if self._looked_at is None:
            self._looked_at = now
        if now - self._looked_at < self.window_s:
            return
        each_j = None
        if self._captures and read.watts is not None:
            each_j = self._spent_j / self._captures
            self.metrics.joules.set(each_j)
        self._looked_at, self._spent_j, self._captures = now, 0.0, 0
        heat = self._heat.look(read.celsius, self.calm_windows)
        energy = self._energy.look(each_j, self.calm_windows)
        for what, change, value in (("heat", heat, read.celsius), ("energy", energy, each_j)):
            if change:
                self._tell(what, change, value or 0.0, read.mode)

    def _tell(self, what: str, change: int, value: float, mode: str) -> None:
        limit = self._heat if what == "heat" else self._energy
        self.metrics.restraint.labels(what).set(limit.level)
        unit = "°C" if what == "heat" else "J for a capture"
        side = f"above the limit of {limit.most:g}" if change > 0 else f"below {limit.well_below:g}"
        self.log.warning(
            "restraint",
            cause=f"{value:.1f} {unit}, {side}",
            level=limit.level,
            rungs_down=max(self._energy.level, self._heat.level // 2),
            works_share=0.5**self._halvings,
            mode=mode,
        )
