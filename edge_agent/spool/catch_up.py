"""How many old frames may be on their way beside the new ones."""

from __future__ import annotations

from collections import deque

_SEEN = 64
_CALM, _BUSY = 1.15, 1.35
"""Old frames may be more while requests take less than this, and are fewer above that, relative to
what requests take beside none or one of them."""
_LEAST = 5


class CatchUp:
    """A window that grows while nothing becomes slower (as TCP Vegas's, Brakmo 1994).

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

    def ended(self, seconds: float, beside: int) -> None:
        """A request was answered.

        Args:
            seconds: from sending it to its answer.
            beside: old frames that were on their way meanwhile.
        """
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
