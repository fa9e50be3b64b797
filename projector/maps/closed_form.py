"""Reduced-rank regression between two cache spaces, in closed form (NumPy).

Knows moments and matrices. Knows nothing about models or training by gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protos.errors import FitError

Floats = npt.NDArray[np.float32]

_WHOLE = 2048  # wider, and a full decomposition costs more than everything else
_SPARE = 64  # directions more than asked for
_POWER = 4


@dataclass(frozen=True)
class Statistics:
    """Static per-dimension statistics of one cache space, over tokens of many pictures."""

    mean: Floats
    scale: Floats

    @classmethod
    def of(cls, states: npt.NDArray[np.floating]) -> Statistics:
        """Mean and standard deviation of `[n, N, d]`; a constant dimension gets scale 1."""
        total = np.zeros(states.shape[-1])
        square = np.zeros(states.shape[-1])
        for part in np.array_split(states, max(1, len(states) // 256)):
            flat = part.reshape(-1, states.shape[-1]).astype(np.float64)
            total += flat.sum(axis=0)
            square += (flat * flat).sum(axis=0)
        count = states.shape[0] * states.shape[1]
        mean = total / count
        scale = np.sqrt(np.maximum(square / count - mean * mean, 0))
        scale[scale < 1e-6] = 1.0
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def normalise(self, states: npt.NDArray[np.floating]) -> Floats:
        """Z-scores of `[..., d]`, float32."""
        return (states.astype(np.float32) - self.mean) / self.scale


@dataclass(frozen=True)
class ReducedRank:
    """W = down @ up with unit-variance latents in between.

    Attributes:
        down: `[d_s, r]` acts on normalised source states.
        up: `[r, d_r]` gives normalised target states.
        singular: singular values of the whitened full-rank map, `[min(d_s, d_r)]`; of a wide one
            some more than r of them.
    """

    down: Floats
    up: Floats
    singular: Floats


def reduced_rank(
    x: npt.NDArray[np.floating],
    y: npt.NDArray[np.floating],
    x_stats: Statistics,
    y_stats: Statistics,
    rank: int,
    ridge: float = 1e-3,
    between: Floats | None = None,
) -> ReducedRank:
    """Reduced-rank regression (Izenman, 1975): argmin ||y - x W||^2 over W of a given rank.

    With S = X^T X / n = L L^T and W = S^-1 X^T Y / n, the singular vectors U of L^T W give
    `down = L^-T U_r`, so that latents have unit variance, and `up = diag(s_r) V_r^T`.

    Args:
        x: `[n, N, d_s]` source states.
        y: `[n, M, d_r]` target states of the same pictures.
        x_stats: normalise the source.
        y_stats: normalise the target.
        rank: r.
        ridge: added to the diagonal of S, whose mean is about 1.
        between: `[M, N]`, interpolates from the source's token grid to the target's.
    """
    d_s, d_r = x.shape[-1], y.shape[-1]
    s_xx = np.zeros((d_s, d_s))
    s_xy = np.zeros((d_s, d_r))
    for start in range(0, len(x), 128):
        normal = x_stats.normalise(x[start : start + 128])
        a = (normal if between is None else between @ normal).reshape(-1, d_s)
        b = y_stats.normalise(y[start : start + 128]).reshape(-1, d_r)
        s_xx += a.T @ a
        s_xy += a.T @ b
    count = y.shape[0] * y.shape[1]
    down, up, singular = rank_regression(s_xx / count, s_xy / count, rank, ridge)
    return ReducedRank(down.astype(np.float32), up.astype(np.float32), singular.astype(np.float32))


def rank_regression(
    xx: npt.NDArray[np.float64], xy: npt.NDArray[np.float64], rank: int, ridge: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The same from normalised covariances `S_xx [d_s, d_s]` and `S_xy [d_s, d_r]`.

    Returns:
        `down [d_s, r]`, `up [r, d_r]` and the singular values of the whitened full-rank map: all of
        them, or the leading ones of a wide map.

    Raises:
        FitError: the regularised covariance is singular.
    """
    if not 0 <= ridge < math.inf:
        raise FitError(f"the ridge weight is {ridge}: it must be a number, 0 or more")
    try:
        lower = np.linalg.cholesky(xx + ridge * np.eye(len(xx)))
    except np.linalg.LinAlgError as error:
        raise FitError(
            "the source's Gram matrix is singular: use a ridge weight above 0, such as 1e-3, or "
            "more pairs"
        ) from error
    whitened = np.linalg.solve(lower, xy)  # L^T W = L^T S^-1 C = L^-1 C
    if min(whitened.shape) > max(_WHOLE, rank + _SPARE):
        left, singular, right = leading(whitened, rank + _SPARE)
    else:
        left, singular, right = np.linalg.svd(whitened, full_matrices=False)
    down = np.linalg.solve(lower.T, left[:, :rank])
    return down, singular[:rank, None] * right[:rank], singular


def leading(
    matrix: npt.NDArray[np.float64], count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The first terms of a singular value decomposition, by random probes (Halko et al., 2011).

    Args:
        matrix: `[m, n]`.
        count: how many; the last of them are less exact.

    Returns:
        As `numpy.linalg.svd`: `[m, count]`, `[count]`, `[count, n]`.
    """
    probes = matrix @ np.random.default_rng(0).standard_normal((matrix.shape[1], count))
    basis, _ = np.linalg.qr(probes)
    for _ in range(_POWER):
        back, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ back)
    left, singular, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, singular, right
