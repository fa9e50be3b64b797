"""`shared`: one matrix per layer, for keys and values alike; the simplest published form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from projector.maps.base import Family, Map
from projector.maps.moments import Moments, ridge
from protos.layout import KVLayout


@dataclass(frozen=True)
class Shared(Family):
    """Maps each target layer from the source layer at its relative depth, one W for K and V.

    Attributes:
        weight: ridge weight.
    """

    name: ClassVar[str] = "shared"
    weight: float = 1e-3

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        return SharedMap(self, source, target)


class SharedMap(Map):
    """Weights of `shared`: `[target layers, source width, target width]`."""

    family: Shared

    def __init__(self, family: Shared, source: KVLayout, target: KVLayout) -> None:
        super().__init__(family, source, target)
        self.narrow = source.kv_heads * source.head_dim
        self.wide = target.kv_heads * target.head_dim
        depth = np.linspace(0, source.layers - 1, target.layers)
        self.taken = [int(layer) for layer in np.rint(depth)]
        self.matrices = nn.Parameter(torch.zeros(target.layers, self.narrow, self.wide))

    def fit(self, moments: Moments) -> None:
        """Least squares over keys and values together, layer by layer."""
        xx, xy = moments.normalised()
        deep, wide = self.source.layers, self.target.layers
        for layer, taken in enumerate(self.taken):
            gram = np.zeros((self.narrow, self.narrow))
            cross = np.zeros((self.narrow, self.wide))
            for part in (0, 1):  # keys, values
                rows = np.arange(self.narrow) + (part * deep + taken) * self.narrow
                columns = np.arange(self.wide) + (part * wide + layer) * self.wide
                gram += xx[np.ix_(rows, rows)]
                cross += xy[np.ix_(rows, columns)]
            self.matrices[layer] = torch.from_numpy(ridge(gram / 2, cross / 2, self.family.weight))

    def up(self, z: Tensor) -> Tensor:
        """`[B, N, d_s]` to `[B, N, d_r]`."""
        split = z.unflatten(-1, (2, self.source.layers, self.narrow))[..., self.taken, :]
        return torch.einsum("bnplc,lcd->bnpld", split, self.matrices).flatten(-3)

    def weights(self) -> Tensor:
        """The matrices as one, `[d_s, d_r]`."""
        rows = torch.eye(self.source.state_dim, device=self.matrices.device)
        return self.up(rows[None])[0]
