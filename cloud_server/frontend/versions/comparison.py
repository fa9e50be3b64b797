"""Tests whether a new version of a bundle is worse; the test stays valid if read after every frame.

Outcomes in 0..1 (1: refused, sent as a picture, risky, answered unlike the picture) come in two
arms: devices on the old version and devices on the new one. One outcome of each arm make a pair.
If the new version is worse by no more than the margin, the stake

    S = mean over λ of ∏ (1 + λ (new − old − margin))

does not grow on average, and reaches 1/α with probability α at most (Ville 1939; testing by betting
as in Waudby-Smith and Ramdas 2024). That holds if both arms see similar scenes: devices are drawn
by a hash, and the margin covers chance differences between few devices.

No single device or tenant can cause a rollback with broken frames: tenants and devices are each
split into halves, and both halves of both must show that the new version is worse. If only one
device or tenant uses the new version, it decides alone. Nor can one on the old version prevent a
rollback: devices are heard in turn, however many frames each sends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloud_server.frontend.answers import Owner
from cloud_server.frontend.versions.rotation import Rotation

_STAKES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""λ of the bets; each gets the same share of the stake."""
FALSE_ALARMS = 0.01
"""Largest probability that a version that is not worse is rolled back, over its whole rollout."""
_KEPT = 512
"""Outcomes of an arm that wait for a partner."""
_MOST_OWNERS = 8192
SECONDED = 20.0
"""Evidence that each half needs; all together need more."""
KINDS = ("refused", "fallback", "risk", "disagreed")
"""Kinds of outcomes; they share the false-alarm rate."""


class Bet:
    """Compares one kind of outcome.

    Args:
        margin: how much worse the new version may be.

    Attributes:
        pairs: pairs of outcomes seen.
        seen_new: whether an outcome of the new version was seen.
    """

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self._logs = [0.0] * len(_STAKES)
        self._waiting = Rotation[float](_KEPT), Rotation[float](_KEPT)
        self._sums = [0.0, 0.0]
        self.pairs = 0
        self.seen_new = False

    def see(self, new: bool, outcome: float, owner: Owner = ("", "")) -> None:
        """Add an outcome.

        Args:
            new: whether it is the new version's.
            outcome: 0..1; higher is worse.
            owner: whose frame it was; each has its turn, however many frames it sends.
        """
        self.seen_new = self.seen_new or new
        self._waiting[int(new)].add(owner, min(1.0, max(0.0, outcome)))
        while self._waiting[0] and self._waiting[1]:
            before, after = (waiting.take() for waiting in self._waiting)
            self._sums[0] += before
            self._sums[1] += after
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
        """The mean outcome of an arm in all pairs; None before the first."""
        return self._sums[int(new)] / self.pairs if self.pairs else None


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


class _Kind:
    """One kind of outcome: of all, and of each half of the tenants and of the devices."""

    def __init__(self, margin: float) -> None:
        self.all = Bet(margin)
        self._halves = [(Bet(margin), Bet(margin)) for _ in range(2)]

    def see(self, new: bool, outcome: float, owner: Owner, halves: Mapping[int, int]) -> None:
        """Take an outcome of an owner in these halves; the old version's count for both."""
        self.all.see(new, outcome, owner)
        for level, half in halves.items():
            for place, bet in enumerate(self._halves[level]):
                if not new or place == half:
                    bet.see(new, outcome, owner)

    def seconded(self, levels: Sequence[int], settled: bool) -> bool:
        """Whether both halves show it; once it is settled, a half without outcomes need not."""
        return all(
            bet.evidence >= SECONDED or (settled and not bet.seen_new)
            for level in levels
            for bet in self._halves[level]
        )


class Comparison:
    """Compares an old and a new version in every kind of outcome.

    Args:
        margin: how much worse the new version may be, in each kind.
        false_alarms: largest probability that it is ever called worse if it is not.
    """

    def __init__(self, margin: float, false_alarms: float) -> None:
        self._enough = len(KINDS) / false_alarms
        self._kinds = {kind: _Kind(margin) for kind in KINDS}
        self._half_of: dict[Owner, int] = {}
        self._sizes: Counter[tuple[int, int]] = Counter()  # of tenants or devices, and half
        self._first: Owner | None = None
        self._levels: list[int] = []  # 0: there are several tenants; 1: several devices

    def see(self, new: bool, owner: Owner, **outcomes: float | None) -> None:
        """Add the outcomes of one frame.

        Args:
            new: whether it was on the new version.
            owner: whose frame it was.
            outcomes: by kind; None where a kind does not apply.
        """
        first = self._first = self._first or owner
        if len(self._levels) < 2 and owner != first:
            self._levels = [0, 1] if owner[0] != first[0] else [1]
        halves = {level: self._half(level, owner) if new else 0 for level in self._levels}
        for kind, outcome in outcomes.items():
            if outcome is not None:
                self._kinds[kind].see(new, outcome, owner, halves)

    def _half(self, level: int, owner: Owner) -> int:
        """The half of an owner's tenant or device; a new one joins the smaller half."""
        unit = owner if level else (owner[0], "")
        half = self._half_of.get(unit)
        if half is None:
            half = min((0, 1), key=lambda one: self._sizes[level, one])
            if len(self._half_of) < _MOST_OWNERS:
                self._half_of[unit] = half
                self._sizes[level, half] += 1
        return half

    def worse(self, settled: bool = False) -> Worse | None:
        """A kind in which the new version is worse; None if there is none.

        Args:
            settled: every device that the new version serves has come to it by now: if that is a
                single one, it decides.
        """
        for name, kind in self._kinds.items():
            before, after = kind.all.mean(False), kind.all.mean(True)
            if before is None or after is None or kind.all.evidence < self._enough:
                continue
            if kind.seconded(self._levels, settled):
                return Worse(name, before, after, kind.all.pairs)
        return None

    def figures(self) -> dict[str, dict[str, float | int | None]]:
        """The figures by kind, for reports."""
        return {
            name: {
                "before": _rounded(kind.all.mean(False)),
                "after": _rounded(kind.all.mean(True)),
                "pairs": kind.all.pairs,
                "evidence": min(1e9, round(kind.all.evidence, 3)),
            }
            for name, kind in self._kinds.items()
            if kind.all.pairs
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
