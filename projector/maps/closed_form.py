"""Reduced-rank regression between two cache spaces, in closed form (NumPy)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protos.errors import FitError

Floats = npt.NDArray[np.float32]

_WHOLE = 2048  # for wider matrices, a full decomposition costs more than all else
_SPARE = 64  # extra directions, beyond those asked for
_POWER = 4


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of each dimension of one cache space, over tokens of many pictures."""

    mean: Floats
    scale: Floats

    def normalise(self, states: npt.NDArray[np.floating]) -> Floats:
        """Z-scores of `states [..., d]`, float32."""
        return (states.astype(np.float32) - self.mean) / self.scale


def rank_regression(
    xx: npt.NDArray[np.float64], xy: npt.NDArray[np.float64], rank: int, ridge: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Reduced-rank regression (Izenman, 1975): argmin ||y - x W||^2 over W of a given rank.

    With S = L L^T and W = S^-1 C, the singular vectors U of L^T W give `down = L^-T U_r` (so the
    latents have unit variance) and `up = diag(s_r) V_r^T`.

    Args:
        xx: covariance S of z-scored source states, `[d_s, d_s]`.
        xy: covariance C of z-scored source and target states, `[d_s, d_r]`.
        rank: r.
        ridge: added to the diagonal of S, whose mean is about 1.

    Returns:
        `down [d_s, r]`, `up [r, d_r]` and the singular values of the whitened full-rank map: all
        of them, or only the leading ones if the map is wide.

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
    """The leading terms of a singular value decomposition, by random probes (Halko et al., 2011).

    Args:
        matrix: `[m, n]`.
        count: number of terms; the last ones are less exact.

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
