"""`bidirectional`: maps edge to cloud and back; the way back weighs tokens by attention.

The way back lets the cloud send a compressed state to the edge (feedback).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from projector.maps.base import Family, Map, grid_weights
from projector.maps.moments import Moments, ridge
from projector.maps.ridge import MatrixMap
from protos.distortion import round_trip
from protos.errors import FitError
from protos.layout import KVLayout


@dataclass(frozen=True)
class Bidirectional(Family):
    """`expand = W x`; `compress = W_q (y * M softmax_tokens(w_a . y))`, both on z-scores.

    The literature does not multiply its softmax by the number of tokens M, so states shrink with
    longer frames; here it is multiplied. Training starts at `w_a = 0`, with equal weights.

    Attributes:
        weight: ridge weight of both ways.
        returned: share of states made by the forward map in the fit of the way back; the others
            are the target's own. (The cloud holds one or the other.)
    """

    name: ClassVar[str] = "bidirectional"
    weight: float = 1e-3
    returned: float = 0.5

    @property
    def needs_target_gram(self) -> bool:
        """True: the fit uses it."""
        return True

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        if not 0 <= self.returned <= 1:
            raise FitError(f"a share of {self.returned} returned states: expected 0 to 1")
        return BidirectionalMap(self, source, target)


class BidirectionalMap(MatrixMap):
    """Weights of both ways."""

    family: Bidirectional

    def __init__(self, family: Bidirectional, source: KVLayout, target: KVLayout) -> None:
        super().__init__(family, source, target)
        self.compress = nn.Parameter(torch.zeros(target.state_dim, source.state_dim))
        self.attend = nn.Parameter(torch.zeros(target.state_dim))
        self.from_grid: Tensor | None
        self.register_buffer("from_grid", grid_weights(target.grid, source.grid), persistent=False)

    def fit(self, moments: Moments) -> None:
        """Both ways in closed form; needs `moments.yy`."""
        xx, xy = moments.normalised()
        self.matrix.copy_(torch.from_numpy(ridge(xx, xy, self.family.weight)).float())
        self.fit_back(moments)

    def fit_back(self, moments: Moments) -> None:
        """Fit the way back in closed form for the current forward map, with equal token weights."""
        xx, xy = moments.normalised()
        w, share = self.matrix.detach().double().numpy(), self.family.returned
        made = xx @ w  # covariance of the source with the forward map's output
        yy = (1 - share) * moments.target_covariance() + share * (w.T @ made)
        yx = (1 - share) * xy.T + share * made.T
        back = ridge(yy, np.ascontiguousarray(yx), self.family.weight)
        with torch.no_grad():
            self.compress.copy_(torch.from_numpy(back).float())
            self.attend.zero_()

    def shares(self, normal: Tensor) -> Tensor:
        """Token weights `[B, M]` with mean 1, from z-scored target states `[B, M, d_r]`."""
        return torch.softmax(normal @ self.attend, dim=-1) * normal.shape[-2]

    def to_edge(self, small: Tensor) -> Tensor:
        """`[B, M, d_s]` on the target's grid, interpolated to the source's `[B, N, d_s]`."""
        if self.from_grid is None:
            return small
        return torch.einsum("nm,bmd->bnd", self.from_grid, small)

    def back(self, y: Tensor) -> Tensor:
        """Target states `[B, M, d_r]` to source states `[B, N, d_s]`, keys un-rotated."""
        normal = (y - self.y_mean) / self.y_scale
        small = (normal * self.shares(normal).unsqueeze(-1)) @ self.compress
        return self.to_edge(small) * self.x_scale + self.x_mean

    def round_trip(self, x: Tensor) -> float:
        """`protos.distortion.round_trip` of source states `[B, N, d_s]`."""
        with torch.no_grad():
            again = self.normal(self.back(self(x)))
            return round_trip(self.normal(x).numpy(), again.numpy())
