"""A verdict, a grade and a tier, as good as the figures: no grade at chance, no yes at zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.certificate import (
    GOOD,
    UNJUDGED,
    UNKNOWN,
    WORSE,
    Judged,
    grade,
    grade_of_answers,
    tier,
    verdict_of,
)

ROOT = Path(__file__).resolve().parents[3]


def arm(mean: float, half: float = 0.02) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def report(native: float, mapped: float, over: float = 0.3, **more: Any) -> dict[str, Any]:
    """The figures of a report of `validate`; `over` is what the controls have."""
    floors = {name: arm(over) for name in ("blind", "mean_state", "other_picture")}
    accuracy = {"native": arm(native), "mapped": arm(mapped), **floors}
    return {"pictures": 512, "accuracy": accuracy, **more}


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("good", report(0.9, 0.88), GOOD),
    ("all at zero", report(0.0, 0.0, 0.0), UNJUDGED),
    ("all alike", report(0.5, 0.5, 0.5), UNJUDGED),
    ("within chance of blind", report(0.31, 0.9), UNJUDGED),
    ("a map at the floor", report(0.9, 0.31), WORSE),
    ("a map below the floor", report(0.9, 0.1), WORSE),
    ("too few pictures", report(0.9, 0.88) | {"pictures": 9}, UNJUDGED),
    (
        "a good map asked about few pictures",
        {
            "pictures": 12,
            "accuracy": {
                "native": arm(0.9, 0.17),
                "mapped": arm(0.55, 0.28),
                **{n: arm(0.3, 0.13) for n in ("blind", "mean_state", "other_picture")},
            },
        },
        UNJUDGED,
    ),
    (
        "a map of no use asked about few pictures",
        {
            "pictures": 12,
            "accuracy": {
                "native": arm(0.9, 0.17),
                "mapped": arm(0.3, 0.13),
                **{n: arm(0.3, 0.13) for n in ("blind", "mean_state", "other_picture")},
            },
        },
        WORSE,
    ),
    (
        "always yes, to questions that any picture answers half",
        {
            "pictures": 512,
            "accuracy": {
                **{n: arm(0.5) for n in ("native", "mapped", "other_picture")},
                **{n: arm(0.0) for n in ("blind", "mean_state")},
            },
        },
        UNJUDGED,
    ),
    (
        "always yes, to questions that the large model answers",
        {
            "pictures": 512,
            "accuracy": {
                "native": arm(0.9),
                **{n: arm(0.5) for n in ("mapped", "other_picture")},
                **{n: arm(0.0) for n in ("blind", "mean_state")},
            },
        },
        WORSE,
    ),
    (
        "another picture does as well",
        report(0.9, 0.8)
        | {"accuracy": report(0.9, 0.8)["accuracy"] | {"other_picture": arm(0.79)}},
        WORSE,
    ),
    (
        "paired differences decide where they were kept",
        report(0.9, 0.32, differences={"mapped_minus_blind": arm(0.03, 0.01)}),
        WORSE,  # of the other two controls there is none, and their intervals overlap
    ),
    (
        "paired differences of all",
        report(
            0.9,
            0.32,
            differences={
                f"mapped_minus_{name}": arm(0.03, 0.01)
                for name in ("blind", "mean_state", "other_picture")
            },
        ),
        GOOD,
    ),
    ("no figures", {"agreement": 0.5}, UNKNOWN),
    ("figures of another sort", {"accuracy": {"mapped": "much"}, "controls": 3}, UNKNOWN),
    (
        "an older certificate without counts",
        {"accuracy": {"float": 0.9}, "controls": {"cloud_image": 0.95, "blind": 0.3}},
        GOOD,
    ),
    (
        "an older certificate at zero",
        {"accuracy": {"float": 0.0}, "controls": {"cloud_image": 0.0, "blind": 0.0}},
        UNJUDGED,
    ),
    (
        "a calibrated point that lost it all",
        report(0.9, 0.88) | {"accuracy": report(0.9, 0.88)["accuracy"] | {"point": 0.3}},
        WORSE,
    ),
]


@pytest.mark.parametrize(("figures", "state"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_verdict_is_as_good_as_the_figures(figures: dict[str, Any], state: str) -> None:
    verdict = verdict_of(figures, "point")
    assert verdict.state == state
    assert bool(verdict.why) == (state != GOOD)
    judged = Judged.of(figures, "point").to_json()
    if state in (UNJUDGED, UNKNOWN):
        assert (
            judged["retention"] is judged["tier_by_answers"] is judged["grade_by_answers"] is None
        )
    if state == WORSE:
        assert (judged["tier_by_answers"], judged["grade_by_answers"]) == ("none", "F")


def test_nothing_has_no_grade_and_no_tier() -> None:
    assert grade_of_answers(None) is tier(None) is None


@pytest.mark.parametrize("name", ["edge-a-cloud", "edge-b-cloud", "edge-c-cloud"])
def test_the_reference_bundles_beat_their_controls(name: str) -> None:
    folder = ROOT / "reference" / "bundles" / name
    plain = json.loads((folder / "bundle.json").read_text())
    points = {point["index"]: point["name"] for point in plain["operating_points"]}
    certificate = json.loads((folder / "certificate.json").read_text())
    assert verdict_of(certificate, points[plain["default_point"]]).state == GOOD


def test_grades_and_tiers_are_the_published_thresholds() -> None:
    assert [grade(c, m) for c, m in ((0.96, 0.005), (0.96, 0.02), (0.86, 0.04), (0.5, 0.0))] == [
        *("A", "B", "C", "F")
    ]
    assert [tier(r) for r in (0.99, 0.96, 0.92, 0.85, 0.5)] == [
        *("platinum", "gold", "silver", "bronze", "none")
    ]


def test_catalogue_shows_tier_and_grade_of_both_forms_of_certificate() -> None:
    reference = {
        "accuracy": {"coarse": 0.9, "float": 0.93},
        "controls": {"cloud_image": 0.95, "blind": 0.3},
        "reconstruction": {"cosine": 0.52},
    }
    found = Judged.of(reference, "coarse").to_json()
    assert found["retention"] == pytest.approx(0.6 / 0.65)
    assert (found["tier_by_answers"], found["grade_by_reconstruction"]) == ("silver", "F")
    means = {"mapped": 0.94, "native": 0.95, "blind": 0.3}
    report = {
        "accuracy": {name: {"mean": mean} for name, mean in means.items()},
        "reconstruction": {"whole": {"cosine": 0.96, "mse": 0.02}},
    }
    assert Judged.of({**report, "seen_in_training": 0}, "fp8").seen == 0
    calibrated = {"seen_in_training": 3}
    assert Judged.of({**report, "seen_in_training": 0, "calibration": calibrated}, "fp8").seen == 3
    assert Judged.of({**report, "calibration": calibrated}, "fp8").seen is None
    found = Judged.of(report, "fp8").to_json()
    assert (found["tier_by_answers"], found["grade_by_reconstruction"]) == ("platinum", "B")
    for odd in (
        {},
        {"accuracy": 3, "reconstruction": "x"},
        {"accuracy": {"mapped": {"mean": "x"}}},
    ):
        said = Judged.of(odd, "fp8").to_json()
        assert said["retention"] is None and said["tier_by_answers"] is None
        assert said["grade_by_reconstruction"] is None
