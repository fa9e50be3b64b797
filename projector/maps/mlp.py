"""`mlp` (V2): two layers with a GELU between them, and a LayerNorm over the whole target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from projector.maps.base import Family, Map
from protos.errors import FitError
from protos.layout import KVLayout

MAX_HIDDEN = 65536


@dataclass(frozen=True)
class MLP(Family):
    """V2 of the literature: `y = LayerNorm(W2 GELU(W1 x))`; has no operator norm.

    Attributes:
        hidden: width between the two layers.
    """

    name: ClassVar[str] = "mlp"
    closed: ClassVar[bool] = False
    hidden: int = 1024

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        if not 1 <= self.hidden <= MAX_HIDDEN:
            raise FitError(f"an mlp of hidden width {self.hidden}: expected 1 to {MAX_HIDDEN}")
        return MLPMap(self, source, target)


class MLPMap(Map):
    """Weights of `mlp`."""

    def __init__(self, family: MLP, source: KVLayout, target: KVLayout) -> None:
        super().__init__(family, source, target)
        self.layers = nn.Sequential(
            nn.Linear(source.state_dim, family.hidden),
            nn.GELU(approximate="tanh"),
            nn.Linear(family.hidden, target.state_dim),
            nn.LayerNorm(target.state_dim),
        )

    def up(self, z: Tensor) -> Tensor:
        """`[B, N, d_s]` to `[B, N, d_r]`."""
        out: Tensor = self.layers(z)
        return out
