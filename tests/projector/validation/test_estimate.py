"""Figures are only worth printing if their arithmetic is checked against something else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from projector.codec.answers import same_answer
from projector.validation.estimate import by_group, clustered, paired, pareto, spread, thin


def test_the_mean_weighs_questions_not_pictures() -> None:
    assert clustered([1, 1, 1, 0], [0, 0, 0, 1]).mean == pytest.approx(0.75)


def test_the_interval_of_single_questions_is_the_normal_one() -> None:
    rng = np.random.default_rng(1)
    right = rng.random(2000) < 0.8
    found = clustered(right.astype(float).tolist(), range(2000))
    half = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)


def test_questions_that_stand_and_fall_together_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    right = np.repeat(rng.random(400) < 0.8, 5).astype(float).tolist()
    together = clustered(right, np.repeat(np.arange(400), 5).tolist())
    apart = clustered(right, range(2000))
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.1)


def test_a_paired_difference_of_equal_arms_has_no_width() -> None:
    arm = [True, False, True, True]
    found = paired(arm, arm, [0, 0, 1, 1])
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_paired_difference_is_first_minus_second() -> None:
    assert paired([True, True], [True, False], [0, 1]).mean == pytest.approx(0.5)


@pytest.mark.parametrize(("values", "pictures"), [([], []), ([1.0], [0, 1])])
def test_no_figure_without_questions(values: list[float], pictures: list[int]) -> None:
    with pytest.raises(ValueError, match="questions"):
        clustered(values, pictures)


def test_groups_are_told_apart() -> None:
    assert by_group([True, False, True], ["a", "a", "b"]) == {"a": 0.5, "b": 1.0}


def test_percentiles_of_nothing_are_not_a_number() -> None:
    assert math.isnan(spread([])["p95"])
    assert spread([1, 2, 3]) == {"p50": 2.0, "p95": 2.9}


@pytest.mark.parametrize(
    ("given", "truth", "same"),
    [
        ("Yes.", "yes", True),
        (" top-left ", "top-left", True),
        ("no", "yes", False),
        ("", "no", False),
    ],
)
def test_an_answer_is_compared_without_case_and_stop(given: str, truth: str, same: bool) -> None:
    assert same_answer(given, truth) is same


def test_the_frontier_holds_no_point_that_a_cheaper_one_reaches() -> None:
    points = [
        {"bytes": 100.0, "accuracy": 0.5},
        {"bytes": 200.0, "accuracy": 0.4},
        {"bytes": 300.0, "accuracy": 0.7},
        {"bytes": 400.0, "accuracy": 0.7},
    ]
    assert pareto(points) == [0, 2]


def test_a_long_frontier_is_thinned_around_the_accuracy_that_matters() -> None:
    points = [{"bytes": 2.0**i, "accuracy": i / 20} for i in range(20)]
    kept = thin(points, pareto(points), 8, floor=0.6)
    assert len(kept) == 8
    assert {0, 10, 11, 12, 13, 19} <= set(kept)
