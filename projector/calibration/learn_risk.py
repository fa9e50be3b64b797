"""Learns the risk model: a ridge logistic regression, and the limit that keeps accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from projector.codec.risk import RiskModel
from protos.errors import FitError

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RIDGE = 100.0
"""Penalty of the weights on standardised features, chosen on validation pictures (docs/log.md)."""
RISING = (0, 1)
"""Features that can only add risk: what coding loses, and the attention of dropped tokens."""
_STEPS = 25
_FOLDS, _SEED = 2, 0
_LEAST_OF_EACH = 10


@dataclass(frozen=True, eq=False)
class Learnt:
    """A risk model, and its cross-fitted risk of every question.

    Attributes:
        risk: fitted to every question.
        crossed: risk of each question by a fit to the other half of the pictures, `[n]`.
        over: whether `crossed` is above the limit that the other half sets, `[n]`.
    """

    risk: RiskModel
    crossed: Doubles
    over: Bools


def learn(
    found: npt.NDArray[np.floating],
    disagree: Bools,
    pictures: npt.NDArray[np.integer],
    right_frame: Bools,
    right_picture: Bools,
    within: float,
    ridge: float = RIDGE,
    limiting: Bools | None = None,
) -> Learnt:
    """Fit on every question; choose the limit by cross-fitting over pictures.

    The limit is the highest at which accuracy, with every riskier question answered from the
    picture, is at most `within` below that from the pictures alone.

    Args:
        found: features, `[n, F]`, finite.
        disagree: whether the answer from the frame differs from that from the picture, `[n]`.
        pictures: which picture each question is about, `[n]`.
        right_frame: whether the answer from the frame is right, `[n]`.
        right_picture: whether the answer from the picture is right, `[n]`.
        within: accuracy that may be lost, 0..1.
        ridge: weight of the penalty.
        limiting: the questions on which the limit is chosen, `[n]`: those about frames at the
            default point. All by default.

    Raises:
        FitError: too few answers differ, or too few do not, in one half of the pictures.
    """
    fold = _halves(pictures, disagree)
    for half in range(_FOLDS):
        differ = int(disagree[fold == half].sum())
        alike = int((fold == half).sum()) - differ
        if min(differ, alike) < _LEAST_OF_EACH:
            raise FitError(
                f"the risk cannot be learnt: of {differ + alike} questions about one half of the "
                f"pictures {differ} are answered otherwise from the frame and {alike} are not; "
                f"it takes {_LEAST_OF_EACH} of each: add pictures or questions"
            )
    x, y = found.astype(np.float64), disagree.astype(np.float64)
    crossed = np.empty(len(y))
    for half in range(_FOLDS):
        held = fold == half
        weights, bias = logistic(x[~held], y[~held], ridge)
        crossed[held] = x[held] @ weights + bias
    weights, bias = logistic(x, y, ridge)
    by = np.ones(len(y), dtype=np.bool_) if limiting is None else limiting

    def limit(rows: Bools) -> float:
        return _limit(crossed[rows], right_frame[rows], right_picture[rows], within)

    over = np.empty(len(y), dtype=np.bool_)
    for half in range(_FOLDS):
        held = fold == half
        others = by & ~held
        over[held] = crossed[held] > (limit(others) if others.any() else np.inf)
    score = limit(by)
    risk = RiskModel(
        mean=x.mean(axis=0).astype(np.float32),
        weights=weights.astype(np.float32),
        bias=bias,
        limit=float(_chance(np.float64(score))),
    )
    return Learnt(risk, _chance(crossed), over)


def _halves(pictures: npt.NDArray[np.integer], disagree: Bools) -> npt.NDArray[np.int64]:
    """Which half of the pictures each question is about, `[n]`.

    The halves are drawn at random, each with as many pictures for which an answer differs.
    """
    _, place = np.unique(pictures, return_inverse=True)
    differs = np.bincount(place, weights=disagree) > 0
    order = np.random.default_rng(_SEED).permutation(len(differs))
    order = order[np.argsort(~differs[order], kind="stable")]
    half = np.empty(len(order), dtype=np.int64)
    half[order] = np.arange(len(order)) % _FOLDS
    halves: npt.NDArray[np.int64] = half[place]
    return halves


def logistic(
    x: Doubles, y: Doubles, ridge: float, rising: tuple[int, ...] = RISING
) -> tuple[Doubles, float]:
    """Weights `[F]` and intercept of a ridge logistic regression, by Newton's method.

    Args:
        x: `[n, F]`; standardised inside, so that the penalty treats all features alike.
        y: 0 or 1, `[n]`.
        ridge: weight of the penalty on the standardised weights.
        rising: features whose weight must not be negative: one that would be is left out. (At one
            operating point a frame that loses more may come from an easier picture; a guard that
            learnt this would take coarser frames for safer ones.)
    """
    weights, bias = _newton(x, y, ridge)
    against = [index for index in rising if index < len(weights) and weights[index] < 0]
    if not against:
        return weights, bias
    kept = np.setdiff1d(np.arange(x.shape[1]), against)
    found = np.zeros(x.shape[1])
    still = tuple(int(np.flatnonzero(kept == index)[0]) for index in rising if index in kept)
    found[kept], bias = logistic(x[:, kept], y, ridge, still)
    return found, bias


def _newton(x: Doubles, y: Doubles, ridge: float) -> tuple[Doubles, float]:
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    a = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    penalty = np.full(a.shape[1], ridge)
    penalty[-1] = 0.0
    w = np.zeros(a.shape[1])
    for _ in range(_STEPS):
        p = _chance(a @ w)
        gradient = a.T @ (p - y) + penalty * w
        curvature = (a * np.maximum(p * (1 - p), 1e-9)[:, None]).T @ a + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    weights = w[:-1] / scale
    return weights, float(w[-1] - weights @ mean)


def _chance(score: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-np.clip(score, -50.0, 50.0)))


def _limit(score: Doubles, frame: Bools, picture: Bools, within: float) -> float:
    order = np.argsort(-score, kind="stable")  # riskiest first
    gained = np.concatenate([[0], np.cumsum(picture[order].astype(int) - frame[order].astype(int))])
    enough = gained + int(frame.sum()) >= picture.sum() - within * len(score)
    fallen_back = int(np.argmax(enough))  # with all of them fallen back it is always enough
    if fallen_back == 0:
        return float(score[order[0]])
    if fallen_back == len(score):
        return float(score[order[-1]] - 1.0)
    return float((score[order[fallen_back - 1]] + score[order[fallen_back]]) / 2)
