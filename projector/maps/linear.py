"""`linear` (V1): one matrix, a learnable residual, and a LayerNorm over the whole target.

The norm gives every token's state the same length, so key norms are lost (the static statistics
restore them only per dimension). Near zero the map is not Lipschitz.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from projector.maps.base import Family, Map
from projector.maps.moments import Moments, ridge
from protos.layout import KVLayout


@dataclass(frozen=True)
class Linear(Family):
    """V1 of the literature: `y = LayerNorm(W x + residual)`, no bias.

    `d_s d_r + d_r` parameters, plus the norm's `2 d_r`: 2,101,248 + 8,192 at 512 -> 4096.

    Attributes:
        weight: ridge weight of the starting point.
    """

    name: ClassVar[str] = "linear"
    closed: ClassVar[bool] = False
    weight: float = 1e-3

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        return LinearMap(self, source, target)


class LinearMap(Map):
    """Weights of `linear`."""

    family: Linear

    def __init__(self, family: Linear, source: KVLayout, target: KVLayout) -> None:
        super().__init__(family, source, target)
        self.project = nn.Linear(source.state_dim, target.state_dim, bias=False)
        self.residual = nn.Parameter(torch.zeros(target.state_dim))
        self.norm = nn.LayerNorm(target.state_dim)

    def fit(self, moments: Moments) -> None:
        """Start from ridge regression; the norm's gain is the deviation of its predictions."""
        xx, xy = moments.normalised()
        solved = ridge(xx, xy, self.family.weight)
        self.project.weight.copy_(torch.from_numpy(solved.T.copy()).float())
        explained = float((solved * (xx @ solved)).sum(axis=0).mean())
        self.norm.weight.fill_(max(explained, 1e-6) ** 0.5)

    def up(self, z: Tensor) -> Tensor:
        """`[B, N, d_s]` to `[B, N, d_r]`."""
        out: Tensor = self.norm(self.project(z) + self.residual)
        return out
