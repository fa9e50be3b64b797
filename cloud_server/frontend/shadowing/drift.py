"""Drift: does the map still fit what a camera sees? A test that may be read after every frame.

The outcome X of a shadowed frame, 0..1, is the share of its questions whose answers differ from the
picture's. As long as X is on average at most the limit (the bundle's calibrated share and a
margin), given all that came before, no bet on more of them gains on average:

    M_t = (M_{t-1} + w_t) · (1 + λ (X_t − limit)),   0 <= λ <= 1 / limit,   M = mean of M_t over λ

w_t is the time since the frame before, in years. M less the sum of w does not grow on average, so
it reaches 1/α within T years with probability α T at most: α is the rate of false alarms per year
of a device, however many frames it shadows and however often one looks. New stakes w_t come in all
the time, so a device that was well for years is judged as fast as a new one.

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024);
Shin, Ramdas and Rinaldo, "E-detectors" (2023), for the sum over all possible times of change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

YEAR_S = 365.25 * 86400.0
BETS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
"""λ · limit of the bets: what each loses if no answer differs. The first finds a small change late,
the last a large one soon; each gets the same share of every stake."""
_LEAST_S, _MOST_S = 1.0, 30 * 86400.0
"""Least and most time between two frames that counts; for more than one shadowed frame a second
the stated rate is a rate per so many seconds."""
_FIRST_S = 86400.0
"""Time that counts before the first frame."""
_OVER = 100.0
"""An alarm that is still true ends falsely at most once in so many shadowed frames."""


@dataclass
class Drift:
    """The test of one device with one bundle; it is kept as JSON (`to_json`).

    Attributes:
        stakes: M, one a bet.
        back: the same for the end of an alarm, counted only during one.
        last_s: when the last outcome came, seconds since 1970; 0 before the first.
        alarm_s: since when there is an alarm; None without one.
        alarms: alarms raised so far.
    """

    stakes: list[float] = field(default_factory=lambda: [0.0] * len(BETS))
    back: list[float] = field(default_factory=lambda: [0.0] * len(BETS))
    last_s: float = 0.0
    alarm_s: float | None = None
    alarms: int = 0

    def see(self, outcome: float, limit: float, now_s: float, false_alarms: float) -> bool:
        """Add an outcome; returns whether an alarm begins or ends with it.

        Args:
            outcome: share of the frame's answers that differ, 0..1.
            limit: largest mean of it that is no alarm, above 0 and below 1; chosen before the
                outcome is known.
            now_s: seconds since 1970; a clock that goes back counts as one that stands.
            false_alarms: per year of a device.
        """
        elapsed_s = now_s - self.last_s if self.last_s else _FIRST_S
        self.last_s = max(now_s, self.last_s)
        if self.alarm_s is not None:
            return self._see_end(outcome, limit)
        new = min(max(elapsed_s, _LEAST_S), _MOST_S) / YEAR_S
        self.stakes = [
            (stake + new) * (1.0 + bet * (outcome / limit - 1.0))
            for stake, bet in zip(self.stakes, BETS, strict=True)
        ]
        if self.evidence * false_alarms < 1.0:
            return False
        self.alarm_s, self.alarms = now_s, self.alarms + 1
        self.back = [0.0] * len(BETS)
        return True

    def _see_end(self, outcome: float, limit: float) -> bool:
        """Bet on less than the limit; after enough gain the alarm is over."""
        room = 1.0 - limit
        self.back = [
            max(stake, 1.0) * (1.0 + bet * (limit - outcome) / room)
            for stake, bet in zip(self.back, BETS, strict=True)
        ]
        if sum(self.back) / len(BETS) < _OVER:
            return False
        self.alarm_s, self.stakes = None, [0.0] * len(BETS)
        return True

    @property
    def evidence(self) -> float:
        """M; an alarm begins when it reaches 1 / false_alarms."""
        return sum(self.stakes) / len(BETS)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Drift:
        """From what `to_json` made."""
        return cls(**value)
