"""A new edge half in closed form: from a small model's states to a hub's latents (NumPy).

Ridge regression with an intercept; its weight is cross-validated over pictures, never over tokens,
because tokens of one picture are alike. Least squares pulls latents towards their mean, so each is
then spread to the deviation that it has in the hub.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from projector.codec.arrays import Floats
from projector.maps.moments import RIDGE_WEIGHTS, Moments, crossed_weight, ridge
from protos.errors import CorpusError

FOLDS = 4
LEAST_PICTURES = FOLDS
"""Fewest different pictures that an edge half is fitted to."""
WEIGHTS = (*RIDGE_WEIGHTS, 10**0.5, 10.0)
MOST_SPREAD, LEAST_SPREAD = 3.0, 0.5


@dataclass(frozen=True, eq=False)
class FittedHalf:
    """An edge half: `z = ((x - x_mean) / x_scale) @ projection`.

    Attributes:
        x_mean: `[d_s]`, with the intercept folded in.
        x_scale: `[d_s]`.
        projection: `[d_s, r]`.
        weight: the ridge weight that cross-validation chose.
        explained: share of the latents' variance explained on pictures left out.
        spread: factor by which each latent was spread, `[r]`.
    """

    x_mean: Floats
    x_scale: Floats
    projection: Floats
    weight: float
    explained: float
    spread: Floats

    def project(self, x: npt.NDArray[np.floating]) -> Floats:
        """Latents `[..., r]` of states `[..., d_s]`."""
        normal: Floats = (x.astype(np.float32) - self.x_mean) / self.x_scale
        latents: Floats = np.matmul(normal, self.projection)
        return latents


def fit_half(
    x: npt.NDArray[np.floating], z: npt.NDArray[np.floating], latent_scale: Floats
) -> FittedHalf:
    """Fit an edge half.

    Args:
        x: the small model's states on the hub's grid, `[n, N, d_s]`, one row per picture.
        z: the latents that the hub should receive, `[n, N, r]`.
        latent_scale: deviations of the hub's latents, `[r]`.

    Raises:
        CorpusError: fewer than four pictures, or states that are not finite.
    """
    if len(x) < LEAST_PICTURES:
        raise CorpusError(
            f"{len(x)} different pictures: an edge half is fitted to {LEAST_PICTURES} at least, "
            "and 16 to 64 do well"
        )
    folds = [Moments.of([(x[one::FOLDS], z[one::FOLDS])]) for one in range(FOLDS)]
    weight, explained = crossed_weight(folds, WEIGHTS)
    whole = sum(folds[1:], start=folds[0])
    xx, xy = whole.normalised()
    fitted = ridge(xx, xy, weight)
    x_stats, z_stats = whole.x_stats, whole.y_stats
    reached = np.sqrt(np.maximum(np.einsum("dr,dr->r", fitted, xx @ fitted), 1e-12))
    wanted = latent_scale / z_stats.scale
    spread = np.clip(wanted / reached, LEAST_SPREAD, MOST_SPREAD)
    projection = fitted * spread * z_stats.scale
    return FittedHalf(
        x_mean=folded(x_stats.mean, x_stats.scale, projection, z_stats.mean),
        x_scale=x_stats.scale,
        projection=projection.astype(np.float32),
        weight=weight,
        explained=explained,
        spread=spread.astype(np.float32),
    )


def folded(
    mean: npt.NDArray[np.floating],
    scale: npt.NDArray[np.floating],
    projection: npt.NDArray[np.floating],
    intercept: npt.NDArray[np.floating],
) -> Floats:
    """A mean `[d_s]` to subtract instead, so that no intercept is needed.

    The least change of `mean` for which `(x - folded) / scale @ projection` equals
    `(x - mean) / scale @ projection + intercept`; there is one if the projection has rank r.
    """
    moved = np.linalg.lstsq(
        projection.T.astype(np.float64), intercept.astype(np.float64), rcond=None
    )[0]
    found: Floats = (mean - moved * scale).astype(np.float32)
    return found


def different(contents: tuple[str, ...]) -> list[int]:
    """Indices of pictures that no earlier one equals.

    Args:
        contents: a digest of each picture.
    """
    seen: dict[str, int] = {}
    for index, content in enumerate(contents):
        seen.setdefault(content, index)
    return sorted(seen.values())
