"""How good a map is in a letter and in a metal, and where a certificate says so.

Knows thresholds and the two forms of a certificate. Measures nothing; needs no tensor library.
"""

from __future__ import annotations

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


def grade_of_answers(retention: float | None) -> str:
    """A grade by answers, A to F: retention held to the least values that cosines are held to.

    Args:
        retention: of the native accuracy above the blind floor; None where native is no better.
    """
    kept = -1.0 if retention is None else retention
    return next((g for g, least, _ in GRADES if kept >= least), "F")


def tier(retention: float | None) -> str:
    """The certificate's tier, by answers; `none` below bronze or where native is no better."""
    if retention is None:
        return "none"
    return next((name for name, least in TIERS if retention >= least), "none")


@dataclass(frozen=True)
class Judged:
    """What a certificate says of a bundle's map; None where it says nothing.

    Attributes:
        accuracy: share of right answers through the map.
        native: through the large model's own cache.
        blind: without any.
        grade: by reconstruction.
        seen: as `seen_in_training`.
    """

    accuracy: float | None
    native: float | None
    blind: float | None
    grade: str | None
    seen: int | None = None

    @classmethod
    def of(cls, certificate: Mapping[str, Any], point: str) -> Judged:
        """Of a report of `projector validate`, or of a reference bundle's certificate.

        Args:
            certificate: untrusted in its form; whatever is no figure counts as not said.
            point: name of the bundle's default operating point.
        """
        measured, controls = _table(certificate, "accuracy"), _table(certificate, "controls")
        fit = _table(certificate, "reconstruction")
        whole = _table(fit, "whole") or fit
        cosine, mse = _share(whole.get("cosine")), _number(whole.get("mse"))
        by_cosine = None if cosine is None else grade(cosine, 0.0)
        known = by_cosine if by_cosine == "F" else None  # F whatever the MSE
        if "mapped" in measured:
            right, native, blind = (_mean(measured, n) for n in ("mapped", "native", "blind"))
            if point in measured:  # calibrated since: what is served is that point
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
        )

    @property
    def retention(self) -> float | None:
        """Share of the native accuracy, above the blind floor, that is kept."""
        if self.accuracy is None or self.native is None or self.blind is None:
            return None
        above = self.native - self.blind
        return (self.accuracy - self.blind) / above if above > 0 else None

    def to_json(self) -> dict[str, Any]:
        """As `projector catalogue --json` prints it."""
        return {
            "accuracy": self.accuracy,
            "native": self.native,
            "blind": self.blind,
            "retention": self.retention,
            "tier_by_answers": tier(self.retention),
            "grade_by_answers": None
            if self.retention is None
            else grade_of_answers(self.retention),
            "grade_by_reconstruction": self.grade,
            "seen_in_training": self.seen,
        }


def seen_in_training(certificate: Mapping[str, Any]) -> int | None:
    """How many inputs a bundle was judged or calibrated on that it was made from; None: not known.

    Args:
        certificate: untrusted in its form.
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
