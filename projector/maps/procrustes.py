"""`procrustes`: an orthogonal matrix, or a ridge matrix pulled towards its polar factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from projector.maps.base import Family, Map
from projector.maps.moments import Doubles, Moments, ridge
from projector.maps.ridge import MatrixMap
from protos.errors import FitError
from protos.layout import KVLayout


@dataclass(frozen=True)
class Procrustes(Family):
    """The scaled orthogonal Procrustes solution (Schönemann, 1966), or a soft form of it.

    With `C = x^T y / n = P S R^T` the solution is `Q = P R^T`, times `tr(S) / tr(x^T x / n)`. The
    literature on such maps gives that name to the polar factor of W, which is the soft form.

    Attributes:
        softness: 0 for the Procrustes solution; above it, `softness * W + (1 - softness) * Q` with
            W the ridge matrix and Q the polar factor of W (their alpha is 1 - softness).
        weight: ridge weight of W.
    """

    name: ClassVar[str] = "procrustes"
    softness: float = 0.0
    weight: float = 1e-3

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        if not 0 <= self.softness <= 1:
            raise FitError(f"a softness of {self.softness}: expected 0 to 1")
        return ProcrustesMap(self, source, target)


class ProcrustesMap(MatrixMap):
    """Weights of `procrustes`."""

    family: Procrustes

    def fit(self, moments: Moments) -> None:
        """The closed form."""
        xx, xy = moments.normalised()
        if self.family.softness:
            full = ridge(xx, xy, self.family.weight)
            soft = self.family.softness
            matrix = soft * full + (1 - soft) * polar(full)
        else:
            left, values, right = np.linalg.svd(xy, full_matrices=False)
            matrix = (left @ right) * (values.sum() / np.trace(xx))
        self.matrix.copy_(torch.from_numpy(matrix).float())


def polar(matrix: Doubles) -> Doubles:
    """The orthogonal factor of a matrix's polar decomposition, `[d_s, d_r]`."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    factor: Doubles = left @ right
    return factor


def orthogonality(matrix: Doubles) -> float:
    """Distance from orthogonal: `||W W^T / s - I||_F / sqrt(d)`, s its mean squared singular value.

    0 for a scaled orthogonal matrix.
    """
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    scaled = gram / (np.trace(gram) / len(gram))
    return float(np.linalg.norm(scaled - np.eye(len(gram))) / len(gram) ** 0.5)
