"""Watches what comes from a camera's process and says when it has to be ended, and why."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from edge_agent.cameras.link import Beat

_LOW_WINDOWS = 4


@dataclass(frozen=True)
class Patience:
    """When a camera counts as broken, and how soon its process is started again.

    Attributes:
        open_s: seconds without a first picture.
        stall_s: seconds without another picture.
        frozen_s: seconds of exactly the same picture; 0: never.
        rate_s: seconds over which the rate is measured.
        slow: share of the first rate below which a camera is slow.
        memory_bytes: most memory of its process.
        backoff_s: upper end of the first pause before a start, seconds; it doubles each time.
        backoff_max_s: upper end of any pause, seconds. Pauses are drawn at random (full jitter).
    """

    open_s: float = 20.0
    stall_s: float = 10.0
    frozen_s: float = 30.0
    rate_s: float = 30.0
    slow: float = 0.5
    memory_bytes: int = 1 << 29
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0

    def pause_s(self, failures: int, state: str) -> float:
        """A pause after that many failures in a row.

        Ten times longer where the camera refuses the password: some lock the user out.
        """
        most = min(self.backoff_max_s, self.backoff_s * 2 ** min(failures, 16))
        return random.uniform(0.0, most * (10 if state == "unauthorized" else 1))


PATIENCE = Patience()


@dataclass
class Watch:
    """One run of a camera's process.

    Attributes:
        patience: when it counts as broken.
        live: false for a file, which may be read slowly and show a still picture.
        began: when the process was started, on the monotonic clock.
    """

    patience: Patience
    live: bool
    began: float
    _decoded: int = 0
    _moved: float | None = None
    _alike_s: float = 0.0
    _counts: deque[tuple[float, int]] = field(default_factory=deque)
    _first_rate: float = 0.0
    _low_since: float | None = None

    def beat(self, beat: Beat, now: float) -> None:
        """Take news of the process."""
        if beat.decoded > self._decoded:
            self._decoded, self._moved = beat.decoded, now
        self._alike_s = beat.alike_s
        counts, patience = self._counts, self.patience
        counts.append((now, beat.decoded))
        while len(counts) > 2 and now - counts[1][0] >= patience.rate_s:
            counts.popleft()
        spent = now - counts[0][0]
        if spent < patience.rate_s:
            return
        rate = (beat.decoded - counts[0][1]) / spent
        self._first_rate = self._first_rate or rate
        if rate >= self._first_rate * patience.slow:
            self._low_since = None
        elif self._low_since is None:
            self._low_since = now

    def verdict(self, now: float, resident_bytes: int) -> str:
        """The state for which the process has to be ended; empty if it may go on.

        Args:
            now: on the monotonic clock.
            resident_bytes: memory of the process.
        """
        patience = self.patience
        if resident_bytes > patience.memory_bytes:
            return "memory"
        if self._moved is None:
            return "silent" if now - self.began > patience.open_s else ""
        if not self.live:
            return ""
        if now - self._moved > patience.stall_s:
            return "silent"
        if 0 < patience.frozen_s <= self._alike_s:
            return "frozen"
        # Some windows more, so that a bad minute of the network does not count as decay.
        low_s = _LOW_WINDOWS * patience.rate_s
        if self._low_since is not None and now - self._low_since >= low_s:
            return "slow"
        return ""
