"""Tests whether a new version of a bundle is worse; the test stays valid if read after every frame.

Outcomes in 0..1 (1: refused, sent as a picture, risky, answered unlike the picture) come in two
arms: devices on the old version and devices on the new one. One outcome of each arm make a pair.
If the new version is worse by no more than the margin, the stake

    S = mean over λ of ∏ (1 + λ (new − old − margin))

does not grow on average, and reaches 1/α with probability α at most (Ville 1939; testing by betting
as in Waudby-Smith and Ramdas 2024). That holds if both arms see similar scenes: devices are drawn
by a hash, and the margin covers chance differences between few devices.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_STAKES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""λ of the bets; each gets the same share of the stake."""
FALSE_ALARMS = 0.01
"""Largest probability that a version that is not worse is rolled back, over its whole rollout."""
_KEPT = 512
"""Outcomes of an arm that wait for a partner."""
KINDS = ("refused", "fallback", "risk", "disagreed")
"""Kinds of outcomes; they share the false-alarm rate."""


class Bet:
    """Compares one kind of outcome.

    Args:
        margin: how much worse the new version may be.

    Attributes:
        pairs: pairs of outcomes seen.
    """

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self._logs = [0.0] * len(_STAKES)
        self._waiting: tuple[deque[float], deque[float]] = (
            deque(maxlen=_KEPT),
            deque(maxlen=_KEPT),
        )
        self._sums, self._counts = [0.0, 0.0], [0, 0]
        self.pairs = 0

    def see(self, new: bool, outcome: float) -> None:
        """Add an outcome.

        Args:
            new: whether it is the new version's.
            outcome: 0..1; higher is worse.
        """
        arm = int(new)
        self._sums[arm] += outcome
        self._counts[arm] += 1
        self._waiting[arm].append(min(1.0, max(0.0, outcome)))
        while self._waiting[0] and self._waiting[1]:
            before, after = (waiting.popleft() for waiting in self._waiting)
            gain = after - before - self._margin
            for place, stake in enumerate(_STAKES):
                self._logs[place] += math.log1p(stake / (1.0 + self._margin) * gain)
            self.pairs += 1

    @property
    def evidence(self) -> float:
        """The stake, as a multiple of the first one."""
        largest = max(self._logs)
        if largest > 600.0:
            return math.inf
        return sum(map(math.exp, self._logs)) / len(_STAKES)

    def mean(self, new: bool) -> float | None:
        """The mean outcome of an arm; None before the first."""
        arm = int(new)
        return self._sums[arm] / self._counts[arm] if self._counts[arm] else None


@dataclass(frozen=True)
class Worse:
    """A kind of outcome in which the new version is worse.

    Attributes:
        kind: one of `KINDS`.
        before: mean outcome on the old version.
        after: mean outcome on the new version.
        pairs: outcomes compared.
    """

    kind: str
    before: float
    after: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.after:.1%} on the new version, {self.before:.1%} on the old one "
            f"({self.pairs} pairs of frames)"
        )


class Comparison:
    """Compares an old and a new version in every kind of outcome.

    Args:
        margin: how much worse the new version may be, in each kind.
        false_alarms: largest probability that it is ever called worse if it is not.
    """

    def __init__(self, margin: float, false_alarms: float) -> None:
        self._enough = len(KINDS) / false_alarms
        self.bets = {kind: Bet(margin) for kind in KINDS}

    def see(self, new: bool, **outcomes: float | None) -> None:
        """Add the outcomes of one frame, by kind; None for a kind that does not apply."""
        for kind, outcome in outcomes.items():
            if outcome is not None:
                self.bets[kind].see(new, outcome)

    @property
    def worse(self) -> Worse | None:
        """A kind in which the new version is worse; None if there is none."""
        for kind, bet in self.bets.items():
            before, after = bet.mean(False), bet.mean(True)
            if bet.evidence >= self._enough and before is not None and after is not None:
                return Worse(kind, before, after, bet.pairs)
        return None

    def figures(self) -> dict[str, dict[str, float | int | None]]:
        """The figures by kind, for reports."""
        return {
            kind: {
                "before": _rounded(bet.mean(False)),
                "after": _rounded(bet.mean(True)),
                "pairs": bet.pairs,
                "evidence": min(1e9, round(bet.evidence, 3)),
            }
            for kind, bet in self.bets.items()
            if bet.pairs
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
