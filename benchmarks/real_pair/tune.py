"""A closed form carried on by gradient, in the few directions of the source that tell most (torch).

Knows maps and their directions. Does not know: models, losses, texts. Numbers of a cache are highly
correlated: descent on a matrix over all of them is slow and forgets what was seldom seen. Here the
source is first turned to uncorrelated numbers of unit variance, those that tell most of the target
first (as canonical correlation analysis would, Hotelling, 1936), and only what follows is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from projector.families.base import Map
from projector.families.low_rank import LowRank, LowRankMatrix
from projector.families.ridge import MatrixMap


class Tuned(nn.Module):
    """`y = [x W] + (x P) A B`, on z-scores; P and W are frozen.

    Attributes:
        directions: P, `[d_s, k]`; `x P` has unit variance and no correlations.
        inner: A, `[k, r]`, or None where nothing is squeezed.
        outer: B, `[r, d_r]`, or `[k, d_r]`.
        base: W, `[d_s, d_r]`, or None.
    """

    directions: Tensor

    def __init__(self, start: Map, directions: Tensor) -> None:
        """Begins at a closed form.

        Args:
            start: reduced-rank regression of rank r, or a whole matrix.
            directions: P; the first r of them are the map's own.
        """
        super().__init__()
        self.start = [start]  # in a list: its weights are neither trained nor kept
        width, rank = directions.shape[1], start.rank
        self.register_buffer("directions", directions, persistent=False)
        self.inner: nn.Parameter | None = None
        self.base: Tensor | None = None
        with torch.no_grad():
            if isinstance(start, LowRankMatrix):
                self.inner = nn.Parameter(torch.eye(width, rank))
                self.outer = nn.Parameter((start.u * start.sigma).T.clone())
            else:
                weights = start.weights()
                assert weights is not None
                self.base = weights.detach()
                self.outer = nn.Parameter(torch.zeros(width, start.target.state_dim))

    def predict(self, x: Tensor) -> Tensor:
        """Source states `[B, N, d_s]` to z-scored target states `[B, N, d_r]`."""
        normal = self.start[0].normal(x)
        told = normal @ self.directions
        moved: Tensor = (told if self.inner is None else told @ self.inner) @ self.outer
        if self.base is None:
            return moved
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            whole = normal @ self.base
        return moved + whole.float()

    @property
    def y_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the target's states, `[d_r]` each."""
        return self.start[0].y_stats

    def travel(self, x: Tensor, _scale: float) -> tuple[Tensor, Tensor]:
        """Target states, and no bits."""
        return self.start[0].states(self.predict(x)), torch.zeros(())

    def penalty(self) -> Tensor:
        """Nothing."""
        return torch.zeros(())

    def groups(self) -> list[dict[str, Any]]:
        """All parameters alike."""
        return [{"params": list(self.parameters()), "scale": 1.0}]

    def merged(self) -> Map:
        """As a member of the family that it began as."""
        start = self.start[0]
        made: Map
        with torch.no_grad():
            if self.inner is not None:
                low = LowRankMatrix(LowRank(r=start.rank), start.source, start.target)
                low.v.copy_(self.directions @ self.inner)
                size = self.outer.norm(dim=1)
                low.sigma.copy_(size)
                low.u.copy_((self.outer / size[:, None]).T)
                made = low
            else:
                assert self.base is not None and isinstance(start, MatrixMap)
                full = MatrixMap(start.family, start.source, start.target)
                full.matrix.copy_(self.base + self.directions @ self.outer)
                made = full
            for name, static in start.named_buffers():
                getattr(made, name).copy_(static)
        return made.eval()
