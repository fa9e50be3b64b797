"""`factors`: reduced-rank regression as two plain factors; a `mix` may fill in some latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from projector.maps.base import Family, Map
from projector.maps.closed_form import rank_regression
from projector.maps.moments import Moments, best_weight
from protos.errors import FitError
from protos.layout import KVLayout


@dataclass(frozen=True)
class Factors(Family):
    """Latents have unit variance. Unlike `low_rank`: no normal form, no bias, no penalty.

    Attributes:
        r: numbers per token that the cloud half takes.
        travels: how many of them travel; 0: all. A `mix` around this map fills in the rest from
            other tokens; without a `mix` they are zero.
        weight: ridge weight of the regression.
        choose: use the weight that fits held-out pairs best, instead of `weight`.
    """

    name: ClassVar[str] = "factors"
    r: int = 64
    travels: int = 0
    weight: float = 1e-3
    choose: bool = False

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        most = min(source.state_dim, target.state_dim)
        if not 1 <= self.r <= most:
            raise FitError(
                f"rank {self.r}: expected 1 to {most}, the smaller of d_s={source.state_dim} and "
                f"d_r={target.state_dim}"
            )
        if not 0 <= self.travels <= self.r:
            raise FitError(f"{self.travels} of {self.r} numbers travel: expected 0 to {self.r}")
        return FactorsMap(self, source, target)


class FactorsMap(Map):
    """Weights of `factors`: `inward [d_s, travels]`, `onward [r, d_r]`."""

    family: Factors

    def __init__(self, family: Factors, source: KVLayout, target: KVLayout) -> None:
        super().__init__(family, source, target)
        self.inward = nn.Parameter(torch.zeros(source.state_dim, family.travels or family.r))
        self.onward = nn.Parameter(torch.zeros(family.r, target.state_dim))

    def fit(self, moments: Moments) -> None:
        """Reduced-rank regression."""
        self.ridge_weight = best_weight(moments) if self.family.choose else self.family.weight
        inward, onward, _ = rank_regression(*moments.normalised(), self.up_rank, self.ridge_weight)
        self.inward.copy_(torch.from_numpy(inward[:, : self.rank].copy()).float())
        self.onward.copy_(torch.from_numpy(onward.copy()).float())

    @property
    def rank(self) -> int:
        """Numbers per token that travel."""
        return self.inward.shape[1]

    @property
    def up_rank(self) -> int:
        """Numbers per token that `up` takes, r."""
        return self.family.r

    def down(self, x: Tensor) -> Tensor:
        """`[..., d_s]` to `[..., travels]`."""
        return x @ self.inward

    def up(self, z: Tensor) -> Tensor:
        """`[..., r]` to `[..., d_r]`."""
        return z @ self.onward

    def latent(self, z: Tensor) -> Tensor:
        """Latents on the target's grid, with zeros for those that did not travel."""
        placed = super().latent(z)
        missing = self.up_rank - self.rank
        return functional.pad(placed, (0, missing)) if missing else placed

    def onto(self) -> Tensor:
        """The second factor."""
        return self.onward

    def weights(self) -> Tensor:
        """The product over the latents that travel, `[d_s, d_r]`."""
        return self.inward @ self.onward[: self.rank]
