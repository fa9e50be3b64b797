"""Whether a new version of a bundle does worse: a test that may be looked at after every frame.

Outcomes in 0..1 (1: refused, sent as a picture, risky, another answer than the picture's) come in
two arms, from devices on the old version and on the new one. The next outcome of each arm make a
pair. If the new version is worse by no more than the margin, the stake

    S = mean over λ of ∏ (1 + λ (new − old − margin))

cannot be expected to grow, and it ever reaches 1/α with a chance of α at most (Ville 1939; a bet,
as in Waudby-Smith and Ramdas 2024). That holds if both arms see alike scenes: devices are drawn by
a hash, and the margin is there for what differs by chance between few of them.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_STAKES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""λ of the bets; each gets the same share of the stake."""
FALSE_ALARMS = 0.01
"""Largest chance that a version is taken back which does not do worse, over its whole rollout."""
_KEPT = 512
"""Outcomes of an arm that wait for a partner."""
KINDS = ("refused", "fallback", "risk", "disagreed")
"""What is compared; the false-alarm rate is shared by all."""


class Bet:
    """Compares one kind of outcome.

    Args:
        margin: by how much the new version may be worse.

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
        """Take an outcome of an arm.

        Args:
            new: whether it is of the new version.
            outcome: 0..1, the higher the worse.
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
        """The stake: how many times more than at the beginning."""
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
    """In what the new version is worse.

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
        margin: by how much the new version may be worse, in each kind.
        false_alarms: largest chance that it is ever called worse, if it is not.
    """

    def __init__(self, margin: float, false_alarms: float) -> None:
        self._enough = len(KINDS) / false_alarms
        self.bets = {kind: Bet(margin) for kind in KINDS}

    def see(self, new: bool, **outcomes: float | None) -> None:
        """Take what became of one frame, by kind; None where a kind does not apply."""
        for kind, outcome in outcomes.items():
            if outcome is not None:
                self.bets[kind].see(new, outcome)

    @property
    def worse(self) -> Worse | None:
        """In what the new version is worse, if it is."""
        for kind, bet in self.bets.items():
            before, after = bet.mean(False), bet.mean(True)
            if bet.evidence >= self._enough and before is not None and after is not None:
                return Worse(kind, before, after, bet.pairs)
        return None

    def figures(self) -> dict[str, dict[str, float | int | None]]:
        """What was seen, by kind, for reports."""
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
