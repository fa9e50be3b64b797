"""Four baselines that the literature rejects: they map caches without aligning them.

`truncate` and `zero_pad` copy numbers to the same index. `interpolate` stretches the source's
vector to the target's length. `autoencoder` takes the source as the code of a target's autoencoder.
None of them learns which source goes with which target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from projector.maps.base import Family, Map
from projector.maps.moments import Moments
from projector.maps.ridge import MatrixMap
from protos.layout import KVLayout


@dataclass(frozen=True)
class Truncate(Family):
    """The first `min(d_s, d_r)` numbers, repeated until the target is full."""

    name: ClassVar[str] = "truncate"

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        made = MatrixMap(self, source, target)
        index = torch.arange(target.state_dim)
        with torch.no_grad():
            made.matrix[index % source.state_dim, index] = 1.0
        return made


@dataclass(frozen=True)
class ZeroPad(Family):
    """The source's numbers, followed by zeros (the mean)."""

    name: ClassVar[str] = "zero_pad"

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        made = MatrixMap(self, source, target)
        with torch.no_grad():
            made.matrix.copy_(torch.eye(source.state_dim, target.state_dim))
        return made


@dataclass(frozen=True)
class Interpolate(Family):
    """The source's vector stretched to the target's length, linearly."""

    name: ClassVar[str] = "interpolate"

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        made = MatrixMap(self, source, target)
        d_s, d_r = source.state_dim, target.state_dim
        place = np.linspace(0, d_s - 1, d_r)
        low = np.minimum(place.astype(np.int64), d_s - 1)
        share = place - low
        matrix = np.zeros((d_s, d_r), dtype=np.float32)
        matrix[low, np.arange(d_r)] = 1 - share
        matrix[np.minimum(low + 1, d_s - 1), np.arange(d_r)] += share
        with torch.no_grad():
            made.matrix.copy_(torch.from_numpy(matrix))
        return made


@dataclass(frozen=True)
class Autoencoder(Family):
    """The target's linear autoencoder (its principal components), with the source as its code.

    The optimal linear autoencoder of width k spans the first k principal components (Baldi and
    Hornik, 1989). The source's z-scores replace the components, in order.
    """

    name: ClassVar[str] = "autoencoder"

    @property
    def needs_target_gram(self) -> bool:
        """True: the fit uses it."""
        return True

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        return AutoencoderMap(self, source, target)


class AutoencoderMap(MatrixMap):
    """Weights of `autoencoder`: the decoder."""

    def fit(self, moments: Moments) -> None:
        """Principal components of the target; needs `moments.yy`."""
        values, vectors = np.linalg.eigh(moments.target_covariance().astype(np.float32))
        code = min(self.source.state_dim, self.target.state_dim)
        spread = np.sqrt(np.maximum(values[::-1][:code], 0))
        decoder = vectors[:, ::-1][:, :code] * spread
        self.matrix[:code] = torch.from_numpy(decoder.T.copy()).float()
