"""Judges a map by its certificate: a grade, a tier, or "cannot be judged".

A grade by answers is given only if the large model answers better from its own cache than without
any picture. A map that does not beat its controls gets the worst grade. Nothing is measured here;
certificates of reports and of reference bundles are both read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GRADES = (("A", 0.95, 0.01), ("B", 0.90, 0.03), ("C", 0.85, 0.05), ("D", 0.80, 0.10))
"""Grade, least mean cosine, largest MSE (as published; both must hold)."""

TIERS = (("platinum", 0.98), ("gold", 0.95), ("silver", 0.90), ("bronze", 0.80))
"""Tier, least retention of the native accuracy above the blind floor."""


def grade(cosine: float, mse: float) -> str:
    """The published grade, A to F, by reconstruction."""
    return next((g for g, least, most in GRADES if cosine >= least and mse <= most), "F")


CONTROLS = ("blind", "mean_state", "other_picture")
"""What a good map must beat: no picture, the mean state, another picture's cache."""
LEAST_PICTURES = 10
"""Fewest pictures with questions; an interval over fewer is meaningless."""
ROOM = 0.5
"""Share of the large model's lead over a control. A map may still be good if its interval reaches
this share, however low the interval starts."""
CANNOT_BE_JUDGED = "cannot be judged"
GOOD, WORSE, UNJUDGED, UNKNOWN = (
    *("beats its controls", "no better than its controls"),
    *(CANNOT_BE_JUDGED, "not known"),
)
_WIDTH = 1.96  # standard deviations in half of a 95 % interval


def grade_of_answers(retention: float | None) -> str | None:
    """A grade by answers, A to F; retention needs the values that `grade` needs of cosines.

    Args:
        retention: share of the native accuracy above the blind floor; None if it cannot be judged.
    """
    if retention is None:
        return None
    return next((g for g, least, _ in GRADES if retention >= least), "F")


def tier(retention: float | None) -> str | None:
    """The certificate's tier by answers; `none` below bronze, None if it cannot be judged."""
    if retention is None:
        return None
    return next((name for name, least in TIERS if retention >= least), "none")


@dataclass(frozen=True)
class Verdict:
    """Whether a map's answers beat its controls.

    Attributes:
        state: `GOOD`, `WORSE`, `UNJUDGED` or `UNKNOWN`.
        why: the figures in words; empty for `GOOD`.
    """

    state: str
    why: str = ""

    @property
    def good(self) -> bool:
        """Whether the map beats its controls."""
        return self.state == GOOD

    @property
    def judged(self) -> bool:
        """Whether the answers' figures are meaningful."""
        return self.state in (GOOD, WORSE)

    def __str__(self) -> str:
        return f"{self.state}: {self.why}" if self.why else self.state


def shares_that_differ(certificate: Mapping[str, Any]) -> dict[str, float]:
    """The share of answers that differ from the picture's, by operating point, as calibrated.

    Args:
        certificate: untrusted; what is no share from 0 to 1 is left out.
    """
    points = _table(_table(certificate, "service_guard"), "by_point")
    found = {name: _share(_table(points, name).get("disagree")) for name in points}
    return {name: share for name, share in found.items() if share is not None and share >= 0}


@dataclass(frozen=True)
class _Figure:
    """A share of right answers, and half the width of its 95 % interval."""

    mean: float
    half: float = 0.0

    def minus(self, other: _Figure) -> tuple[float, float]:
        """The interval of the difference, treating the two as independent."""
        apart, half = self.mean - other.mean, math.hypot(self.half, other.half)
        return apart - half, apart + half


def verdict_of(certificate: Mapping[str, Any], point: str) -> Verdict:
    """Judge a map by the figures in a report or a certificate.

    Uses differences on the same questions if they were kept (`differences`), else intervals. For a
    bare share, the interval is that of as many answers as pictures. If the interval of the map's
    lead over a control reaches below zero, the map does not beat that control. It is no better if
    the interval also ends below `ROOM` of the large model's own lead, else it cannot be judged.

    Args:
        certificate: untrusted; a value that is not a figure counts as missing.
        point: name of the operating point that is served.
    """
    pictures = certificate.get("pictures_asked", certificate.get("pictures"))
    count = pictures if type(pictures) is int and pictures > 0 else 0
    measured, controls = _table(certificate, "accuracy"), _table(certificate, "controls")

    def figure(value: Any) -> _Figure | None:
        if isinstance(value, dict):
            mean, low, high = (_share(value.get(end)) for end in ("mean", "low", "high"))
            if mean is not None and low is not None and high is not None:
                return _Figure(mean, max(high - mean, mean - low))
            value = mean
        share = _share(value)
        if share is None or not 0 <= share <= 1:
            return None
        half = _WIDTH * math.sqrt(share * (1 - share) / count) if count else 0.0
        return _Figure(share, half)

    of_report = "mapped" in measured
    floors = measured if of_report else controls
    calibrated = of_report and point in measured
    right = figure(
        measured[point]
        if calibrated
        else measured.get("mapped" if of_report else point, measured.get("float"))
    )
    native = figure(floors.get("native" if of_report else "cloud_image"))
    found = {name: figure(floors.get(name)) for name in CONTROLS}
    blind = found["blind"]
    if right is None or native is None or blind is None:
        lacks = [n for n, f in (("its own", right), ("native", native), ("blind", blind)) if not f]
        return Verdict(UNKNOWN, f"there are no figures of answers ({', '.join(lacks)})")
    if 0 < count < LEAST_PICTURES:
        return Verdict(
            UNJUDGED, f"the questions are about {count} inputs, at least {LEAST_PICTURES} needed"
        )
    kept = _table(certificate, "differences")

    def apart(one: _Figure, other: _Figure, name: str) -> tuple[float, float]:
        low, high = (_number(_table(kept, name).get(end)) for end in ("low", "high"))
        return one.minus(other) if low is None or high is None else (low, high)

    if not apart(native, blind, "native_minus_blind")[0] > 0:
        return Verdict(
            UNJUDGED,
            f"the large model is right in {native.mean:.1%} from its own cache and in "
            f"{blind.mean:.1%} without any input: these questions do not tell the two apart",
        )
    losing, hopeless = [], False
    for name, other in found.items():
        if other is None:
            continue
        low, high = apart(right, other, "" if calibrated else f"mapped_minus_{name}")
        if not low > 0:
            losing.append(f"{name.replace('_', ' ')} {other.mean:.1%}")
            hopeless |= not high >= ROOM * (native.mean - other.mean)
    if losing:
        why = f"right in {right.mean:.1%}, beside {', '.join(losing)}"
        if hopeless:
            return Verdict(WORSE, why)
        return Verdict(UNJUDGED, f"{why}: these questions do not show whether it is better")
    return Verdict(GOOD)


@dataclass(frozen=True)
class Judged:
    """A bundle's figures from its certificate; None for missing ones.

    Attributes:
        accuracy: share of right answers through the map.
        native: share from the large model's own cache.
        blind: share without any picture.
        grade: by reconstruction.
        seen: from `seen_in_training`.
        verdict: whether the figures of answers are meaningful and the controls are beaten.
    """

    accuracy: float | None
    native: float | None
    blind: float | None
    grade: str | None
    seen: int | None = None
    verdict: Verdict = Verdict(UNKNOWN)

    @classmethod
    def of(cls, certificate: Mapping[str, Any], point: str) -> Judged:
        """Read a report of `projector validate`, or a reference bundle's certificate.

        Args:
            certificate: untrusted; a value that is not a figure counts as missing.
            point: name of the bundle's default operating point.
        """
        measured, controls = _table(certificate, "accuracy"), _table(certificate, "controls")
        fit = _table(certificate, "reconstruction")
        whole = _table(fit, "whole") or fit
        cosine, mse = _share(whole.get("cosine")), _number(whole.get("mse"))
        by_cosine = None if cosine is None else grade(cosine, 0.0)
        known = by_cosine if by_cosine == "F" else None  # then it is F whatever the MSE
        if "mapped" in measured:
            right, native, blind = (_mean(measured, n) for n in ("mapped", "native", "blind"))
            if point in measured:  # calibrated later: that point is served
                right = _share(measured[point])
        else:
            right = _share(measured.get(point, measured.get("float")))
            native, blind = (_share(controls.get(n)) for n in ("cloud_image", "blind"))
        return cls(
            right,
            native,
            blind,
            known if cosine is None or mse is None else grade(cosine, mse),
            seen_in_training(certificate),
            verdict_of(certificate, point),
        )

    @property
    def retention(self) -> float | None:
        """Share of the native accuracy above the blind floor; None if it cannot be judged."""
        if self.accuracy is None or self.native is None or self.blind is None:
            return None
        if not self.verdict.judged:
            return None
        above = self.native - self.blind
        return (self.accuracy - self.blind) / above if above > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in `projector catalogue --json`."""
        letter, metal = answered(self.retention, self.verdict)
        return {
            "accuracy": self.accuracy,
            "native": self.native,
            "blind": self.blind,
            "retention": self.retention,
            "tier_by_answers": metal,
            "grade_by_answers": letter,
            "verdict": self.verdict.state,
            "why": self.verdict.why,
            "grade_by_reconstruction": self.grade,
            "seen_in_training": self.seen,
        }


def answered(retention: float | None, verdict: Verdict) -> tuple[str | None, str | None]:
    """Grade and tier by answers; the worst of both for a map that does not beat its controls."""
    if verdict.state == WORSE:
        return "F", "none"
    return grade_of_answers(retention), tier(retention)


def seen_in_training(certificate: Mapping[str, Any]) -> int | None:
    """Number of inputs that trained a bundle and also judged or calibrated it; None: not known.

    Args:
        certificate: untrusted.
    """
    counts = [certificate.get("seen_in_training")]
    calibration = _table(certificate, "calibration")
    if calibration:
        counts.append(calibration.get("seen_in_training"))
    known = [count for count in counts if type(count) is int and count >= 0]
    return max(known) if len(known) == len(counts) else None


def _table(certificate: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = certificate.get(name)
    return found if isinstance(found, dict) else {}


def _mean(measured: Mapping[str, Any], name: str) -> float | None:
    return _share(_table(measured, name).get("mean"))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _share(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and -1 <= number <= 1 else None
