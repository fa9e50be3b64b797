"""A validation in words and figures, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from projector.bundle.certificate import CANNOT_BE_JUDGED, GOOD


def doubted(report: Mapping[str, Any]) -> str | None:
    """The warning about a map that cannot be judged or is no better than its controls, or None."""
    if report["verdict"] == GOOD:
        return None
    return f"{report['verdict'].upper()}: {report['why']}"


def grade_text(grade: str | None) -> str:
    """A grade or tier, or that the map cannot be judged."""
    return CANNOT_BE_JUDGED if grade is None else grade


def seen(report: Mapping[str, Any]) -> str | None:
    """The warning that a map was judged on pictures that it was made from, or None."""
    count = report.get("seen_in_training")
    if count is None:
        return (
            "not known to be held out: nothing beside this map says what it was trained on "
            "(training it again with `projector train` does)"
        )
    if not count:
        return None
    return (
        f"NOT HELD OUT: {count} of these {report['pictures']} were trained on or chosen by; every "
        "figure flatters the map"
    )


def agreed(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The map's answers compared with the native ones: name and figure."""
    agreement, gap = report["agreement"], report["mapped_minus_native"]
    other = report["other_picture_labels"]
    rows = [
        ("same first token", f"{agreement['first_token']:.1%}"),
        ("same full answer", f"{agreement['full_answer']:.1%}"),
        ("KL of the answer, nats", f"{agreement['kl_nats']:.3f}"),
        (
            "right, mapped minus native, points",
            "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * gap[k] for k in ("mean", "low", "high"))),
        ),
    ]
    if other["questions"]:
        rows += [
            (
                f"another picture's cache, {other['questions']} questions",
                f"{other['other_picture']:.1%}",
            ),
            ("that picture's labels, same questions", f"{other['labels']:.1%}"),
        ]
    return rows


def diagnosed(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Diagnostics of a map: name, figure, what is wanted."""
    found, fit, trip = report["diagnostics"], report["reconstruction"], report["round_trip"]
    rank, condition = found["effective_rank"], found["condition_number"]
    flagged = " FLAGGED" if found.get("condition_flagged") else ""
    return [
        ("effective rank (above 1 % of the largest)", "–" if rank is None else str(rank), ""),
        (
            "condition number",
            "not linear" if condition is None else f"{condition:.4g}{flagged}",
            "below 1000",
        ),
        ("operator norm", number(found["operator_norm"]), ""),
        ("residual variance", number(fit["residual_variance"]), ""),
        ("ε, RMSE of a z-score", f"{fit['epsilon']:.3f}", ""),
        ("round trip", "no way back" if trip is None else f"{trip:.3f}", "below 0.10"),
    ]


def yes_no(holds: bool | None) -> str:
    """Whether a statement holds, in a word."""
    return CANNOT_BE_JUDGED if holds is None else "yes" if holds else "NO"


def number(value: float | None) -> str:
    """Three decimals; a dash without a figure."""
    return "–" if value is None else f"{value:.3f}"
