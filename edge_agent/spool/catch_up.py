"""When old frames go, and how many at once: in the gaps between new ones, and no faster than fits.

The window grows while nothing becomes slower (as TCP Vegas's, Brakmo 1994). New frames of a camera
come at regular times, so an old one is started only if it should end before the next new one comes.
"""

from __future__ import annotations

from collections import deque

_SEEN = 64
_CALM, _BUSY = 1.15, 1.35
"""Old frames may be more while requests take less than this, and are fewer above that, relative to
what requests take beside none or one of them."""
_LEAST = 5
_FRESH = 0.2
"""Weight of the latest interval and duration in their means."""
_MARGIN = 1.25
"""An old frame counts as this much longer than usual."""
_PATIENCE = 4
"""So many new frames may pass an old one; then it goes, gap or not."""
_SOON_S = 0.02


class CatchUp:
    """The window of old frames, and the gaps for them.

    Args:
        most: largest window.

    Attributes:
        window: old frames on their way at most.
    """

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self.window = 1
        self._alone: deque[float] = deque(maxlen=_SEEN)
        self._beside: deque[float] = deque(maxlen=_LEAST)
        self._came_at: float | None = None
        self._interval_s = self._old_s = 0.0
        self._passed = 0

    def came(self, now: float) -> None:
        """A new frame came at `now`, seconds."""
        if self._came_at is not None:
            self._interval_s = _mean(self._interval_s, now - self._came_at)
        self._came_at = now
        self._passed += 1

    def started(self) -> None:
        """An old frame is sent."""
        self._passed = 0

    def wait_s(self, now: float, new_on_way: int) -> float:
        """Seconds until an old frame may be started; 0 for now.

        Args:
            now: seconds.
            new_on_way: new frames that have no answer yet.
        """
        if self._came_at is None or not self._interval_s or self._passed >= _PATIENCE:
            return 0.0
        since = now - self._came_at
        if since > 2 * self._interval_s:
            return 0.0  # they do not come any more
        if new_on_way:
            return _SOON_S
        if since + _MARGIN * self._old_s <= self._interval_s:
            return 0.0
        return max(_SOON_S, 2 * self._interval_s - since)

    def ended(self, seconds: float, beside: int, old: bool) -> None:
        """A request was answered.

        Args:
            seconds: from sending it to its answer.
            beside: old frames that were on their way meanwhile.
            old: whether it was one itself.
        """
        if old:
            self._old_s = _mean(self._old_s, seconds)
        if beside <= 1:
            self._alone.append(seconds)
        if beside < self.window or len(self._alone) < _LEAST:
            return
        self._beside.append(seconds)
        if len(self._beside) < _LEAST:
            return
        usual = sorted(self._alone)[len(self._alone) // 2]
        now = sorted(self._beside)[len(self._beside) // 2]
        self._beside.clear()
        if now > _BUSY * usual:
            self.window = max(1, self.window // 2)
        elif now < _CALM * usual:
            self.window = min(self._most, self.window + 1)


def _mean(before: float, latest: float) -> float:
    return latest if not before else (1 - _FRESH) * before + _FRESH * latest
