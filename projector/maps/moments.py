"""Counts, sums and Gram matrices from one pass over paired caches (NumPy).

One pass serves every regularisation, rank and choice of layers. 100,000 pairs need no more memory
than one chunk. Chunks are multiplied in float32 and summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from projector.maps.closed_form import Statistics
from projector.maps.metric import Metric
from protos.errors import CorpusError, FitError

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
States = npt.NDArray[np.floating]

RIDGE_WEIGHTS: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(-12, 1))
"""Ridge weights to choose from: 1e-6 to 1, in units of a dimension's variance."""


@dataclass(frozen=True)
class Moments:
    """Sums over n paired states `x [d_s]`, `y [d_r]`.

    Attributes:
        count: n, the number of tokens (not pictures), or the sum of their weights.
        x_sum: `[d_s]`.
        y_sum: `[d_r]`.
        xx: `[d_s, d_s]`, sum of outer products.
        xy: `[d_s, d_r]`.
        y_square: `[d_r]`, sum of squares.
        yy: `[d_r, d_r]`, only if requested.
        metric: the cost of errors in the target; None for the target's own variance.
        held: moments of other pictures, for choices made in a fit; None to use these.
    """

    count: float
    x_sum: Doubles
    y_sum: Doubles
    xx: Doubles
    xy: Doubles
    y_square: Doubles
    yy: Doubles | None = None
    metric: Metric | None = field(default=None, kw_only=True)
    held: Moments | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, pairs: Iterable[tuple[States, ...]], *, target_gram: bool = False) -> Moments:
        """One pass over chunks of pairs.

        Args:
            pairs: chunks of `x [..., d_s]` and `y [..., d_r]` with equal counts; an optional third
                array `[...]` weighs each pair.
            target_gram: whether to collect `yy`.

        Raises:
            CorpusError: no pairs, chunks of unequal length or width, NaN or infinity.
        """
        total: list[Doubles] | None = None
        count = 0.0
        for one, other, *weights in pairs:
            x = np.ascontiguousarray(one.reshape(-1, one.shape[-1]), dtype=np.float32)
            y = np.ascontiguousarray(other.reshape(-1, other.shape[-1]), dtype=np.float32)
            if len(x) != len(y):
                raise CorpusError(f"{len(x)} source states beside {len(y)} of the target: unpaired")
            each = np.ones(len(x), dtype=np.float32)
            by_x, by_y = x, y
            if weights:
                each = np.ascontiguousarray(weights[0].reshape(-1), dtype=np.float32)
                by_x, by_y = x * each[:, None], y * each[:, None]
            parts = [each @ x, each @ y, by_x.T @ x, by_x.T @ y, np.einsum("nd,nd->d", by_y, y)]
            if target_gram:
                parts.append(by_y.T @ y)
            if not all(np.isfinite(part).all() for part in parts):
                raise CorpusError("the paired states hold NaN or infinity")
            if total is None:
                total = [part.astype(np.float64) for part in parts]
            elif total[3].shape != parts[3].shape:
                raise CorpusError("chunks of states of different widths: two pairs of models mixed")
            else:
                for whole, part in zip(total, parts, strict=True):
                    whole += part
            count += float(each.sum())
        if total is None or not count:
            raise CorpusError("no pairs: the corpus is empty")
        return cls(count, *total)

    @classmethod
    def none(cls, d_s: int, d_r: int) -> Moments:
        """Moments of no pairs, to add others to."""
        return cls(
            0.0,
            np.zeros(d_s),
            np.zeros(d_r),
            np.zeros((d_s, d_s)),
            np.zeros((d_s, d_r)),
            np.zeros(d_r),
        )

    def __add__(self, other: Moments) -> Moments:
        """Moments of both samples together, none held out; `yy` only if both have it."""
        return Moments(
            self.count + other.count,
            self.x_sum + other.x_sum,
            self.y_sum + other.y_sum,
            self.xx + other.xx,
            self.xy + other.xy,
            self.y_square + other.y_square,
            None if self.yy is None or other.yy is None else self.yy + other.yy,
        )

    @property
    def d_s(self) -> int:
        """Width of the source."""
        return len(self.x_sum)

    @property
    def d_r(self) -> int:
        """Width of the target."""
        return len(self.y_sum)

    @property
    def x_stats(self) -> Statistics:
        """Mean and deviation of each source dimension."""
        return _statistics(self.count, self.x_sum, np.diagonal(self.xx))

    @property
    def y_stats(self) -> Statistics:
        """Mean and deviation of each target dimension."""
        return _statistics(self.count, self.y_sum, self.y_square)

    def normalised(
        self, x_stats: Statistics | None = None, y_stats: Statistics | None = None
    ) -> tuple[Doubles, Doubles]:
        """Covariances of z-scored states.

        Args:
            x_stats: mean and deviation for the source; by default this sample's own.
            y_stats: the same for the target.

        Returns:
            `S_xx [d_s, d_s]` and `S_xy [d_s, d_r]`, per pair.
        """
        xs, ys = x_stats or self.x_stats, y_stats or self.y_stats
        xx = _second(self.xx, self.x_sum, self.x_sum, self.count, xs, xs)
        xy = _second(self.xy, self.x_sum, self.y_sum, self.count, xs, ys)
        return xx, xy

    def target_covariance(self) -> Doubles:
        """Covariance of the z-scored target, `[d_r, d_r]`.

        Raises:
            FitError: `yy` was not collected.
        """
        if self.yy is None:
            raise FitError("this fit needs the target's Gram matrix: collect with target_gram")
        stats = self.y_stats
        return _second(self.yy, self.y_sum, self.y_sum, self.count, stats, stats)

    def squared_error(self, weights: States, x_stats: Statistics, y_stats: Statistics) -> Doubles:
        """Mean squared error of `y ≈ x @ weights` on these pairs, per target dimension `[d_r]`.

        In z-scores of the given statistics, those of the fit; needs no pass over the pairs.
        """
        xx, xy = self.normalised(x_stats, y_stats)
        w = weights.astype(np.float64)
        mean, scale = y_stats.mean.astype(np.float64), y_stats.scale.astype(np.float64)
        square = self.y_square - 2 * mean * self.y_sum + self.count * mean * mean
        own = square / self.count / scale**2
        error: Doubles = own - 2 * np.einsum("dr,dr->r", w, xy) + np.einsum("dr,dr->r", w, xx @ w)
        return error


def _statistics(count: float, total: Doubles, square: Doubles) -> Statistics:
    mean = total / count
    scale = np.sqrt(np.maximum(square / count - mean * mean, 0))
    scale[scale < 1e-6] = 1.0
    return Statistics(mean.astype(np.float32), scale.astype(np.float32))


def _second(
    product: Doubles, a_sum: Doubles, b_sum: Doubles, count: float, a: Statistics, b: Statistics
) -> Doubles:
    """Mean of `(a - mean) (b - mean)^T / (scale scale^T)`, from raw sums."""
    a_mean, b_mean = a.mean.astype(np.float64), b.mean.astype(np.float64)
    centred = (
        product
        - np.outer(a_mean, b_sum)
        - np.outer(a_sum, b_mean)
        + count * np.outer(a_mean, b_mean)
    )
    normal: Doubles = centred / count / np.outer(a.scale, b.scale).astype(np.float64)
    return normal


def best_weight(moments: Moments) -> float:
    """The weight in `RIDGE_WEIGHTS` whose ridge map fits the held-out pairs best.

    One eigendecomposition of the source's covariance serves all weights. A singular covariance has
    rounding errors, seen as negative eigenvalues. Weights up to twice those errors are skipped: the
    system could not be solved with them.

    Args:
        moments: of training pairs, with held-out moments.

    Raises:
        FitError: there are no held-out moments, or no weight is large enough.
    """
    if moments.held is None:
        raise FitError("a ridge weight is chosen on held-out pairs, and none are held out")
    return _least(_weight_errors(moments, moments.held))


def crossed_weight(
    folds: Sequence[Moments], weights: Sequence[float] = RIDGE_WEIGHTS
) -> tuple[float, float]:
    """The ridge weight that predicts each fold best from the others.

    Args:
        folds: moments of disjoint sets of pictures, at least two.
        weights: to choose from.

    Returns:
        The weight, and the share of the target's variance that it explains on held-out folds, at
        most 1; mean over the target's dimensions.

    Raises:
        FitError: fewer than two folds, or no weight is large enough for every fold.
    """
    if len(folds) < 2:
        raise FitError("cross-validation takes two sets of pictures at least")
    total: dict[float, list[float]] = {}
    for index, held in enumerate(folds):
        others = [one for place, one in enumerate(folds) if place != index]
        rest = sum(others, start=Moments.none(held.d_s, held.d_r))
        for weight, error in _weight_errors(rest, held, weights).items():
            total.setdefault(weight, []).append(error)
    whole = {weight: sum(errors) for weight, errors in total.items() if len(errors) == len(folds)}
    best = _least(whole)
    return best, -whole[best] / len(folds) / folds[0].d_r


def _weight_errors(
    moments: Moments, held: Moments, weights: Sequence[float] = RIDGE_WEIGHTS
) -> dict[float, float]:
    """Held-out squared error of each usable weight, minus that of predicting the mean."""
    xx, xy = moments.normalised()
    held_xx, held_xy = held.normalised(moments.x_stats, moments.y_stats)
    values, vectors = np.linalg.eigh(xx)
    turned, asked = vectors.T @ xy, vectors.T @ held_xy
    spread = vectors.T @ held_xx @ vectors
    errors = {}
    for weight in weights:
        if values[0] + weight > weight / 2:
            fitted = turned / (np.maximum(values, 0.0) + weight)[:, None]
            errors[weight] = float(np.vdot(fitted, spread @ fitted) - 2 * np.vdot(fitted, asked))
    return errors


def _least(errors: Mapping[float, float]) -> float:
    if not errors:
        raise FitError("the source's covariance is invalid: its rounding errors exceed any ridge")
    return min(errors, key=lambda weight: (errors[weight], weight))


def ridge(xx: Doubles, xy: Doubles, weight: float) -> Doubles:
    """`W [d_s, d_r] = argmin ||y - x W||^2 + weight ||W||_F^2` from normalised covariances.

    (Hoerl and Kennard, 1970.)

    Args:
        xx: `[d_s, d_s]`.
        xy: `[d_s, d_r]`.
        weight: at least 0, in units of the mean variance of a source dimension.

    Raises:
        FitError: the regularised system is singular.
    """
    if not 0 <= weight < math.inf:
        raise FitError(f"the ridge weight is {weight}: it must be a number, 0 or more")
    system = xx + weight * np.eye(len(xx))
    try:
        lower = np.linalg.cholesky(system)
    except np.linalg.LinAlgError as error:
        raise FitError(
            "the source's Gram matrix is singular (constant or repeated dimensions, or fewer "
            "pairs than dimensions): use a ridge weight above 0, such as 1e-3, or more pairs"
        ) from error
    pivots = np.diagonal(lower)
    if pivots.min() < 1e-7 * pivots.max():
        raise FitError(
            "the source's Gram matrix is singular to working precision: use a ridge weight above "
            "0, such as 1e-3, or more pairs"
        )
    solved: Doubles = np.linalg.solve(system, xy).astype(np.float64, copy=False)
    return solved
