"""Learns how far the small model's own answers can be trusted, from pictures with true answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from projector.calibration.learn_risk import logistic
from projector.codec.confidence import Confidence
from protos.errors import FitError

_RIDGE = 10.0
_FOLDS, _BINS, _LEAST_OF_EACH = 2, 10, 10

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LearntConfidence:
    """A confidence and how good it is, by fits to the other half of the pictures.

    Attributes:
        confidence: fitted to every question.
        crossed: confidence in each answer by the other half's fit, `[n]`.
        error: expected calibration error of `crossed`.
    """

    confidence: Confidence
    crossed: npt.NDArray[np.float64]
    error: float


def learn_confidence(
    found: npt.NDArray[np.float64], right: Bools, pictures: npt.NDArray[np.integer]
) -> LearntConfidence:
    """Fit the confidence.

    Args:
        found: features, `[n, 132]`.
        right: whether the small model's answer is right, `[n]`.
        pictures: which picture each question is about, `[n]`.

    Raises:
        FitError: too few answers are right, or too few wrong, in one half of the pictures.
    """
    fold = np.unique(pictures, return_inverse=True)[1] % _FOLDS
    for half in range(_FOLDS):
        good = int(right[fold == half].sum())
        bad = int((fold == half).sum()) - good
        if min(good, bad) < _LEAST_OF_EACH:
            raise FitError(
                f"the confidence cannot be learnt: of {good + bad} questions about one half of the "
                f"pictures {good} are answered rightly and {bad} wrongly; it takes "
                f"{_LEAST_OF_EACH} of each: add pictures or questions"
            )

    def fit(rows: Bools) -> Confidence:
        weights, bias = logistic(found[rows], right[rows].astype(np.float64), _RIDGE, ())
        return Confidence(weights, bias)

    crossed = np.empty(len(right))
    for half in range(_FOLDS):
        crossed[fold == half] = fit(fold != half).of_features(found[fold == half])
    whole = fit(np.ones(len(right), np.bool_))
    return LearntConfidence(whole, crossed, calibration_error(crossed, right))


def calibration_error(confidence: npt.NDArray[np.float64], right: Bools) -> float:
    """Mean distance between confidence and share of right answers, over ten bins by size."""
    order = np.argsort(confidence, kind="stable")
    parts: list[Any] = np.array_split(order, _BINS)
    return float(
        sum(len(p) * abs(confidence[p].mean() - right[p].mean()) for p in parts if len(p))
        / len(right)
    )
