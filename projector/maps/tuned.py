"""A closed form trained further by gradient, in the source's most informative directions (torch).

Numbers of a cache are highly correlated, so gradient descent on a matrix over all of them is slow
and forgets rare inputs. Here the source is first turned into uncorrelated numbers of unit variance,
ordered by how much they tell of the target (as in canonical correlation analysis, Hotelling, 1936).
Only what follows them is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from projector.maps.base import Map
from projector.maps.closed_form import rank_regression
from projector.maps.low_rank import LowRankMatrix
from projector.maps.moments import Moments
from projector.maps.ridge import MatrixMap, Ridge
from projector.maps.rounding import WHOLE, Way
from projector.models.autocast import products
from protos.errors import FitError


def require_count(count: int, rank: int, widths: tuple[int, int]) -> None:
    """Refuse more directions than exist, or fewer than a map's rank.

    Args:
        count: number of directions.
        rank: of the map at the start; 1 for a whole matrix.
        widths: `d_s, d_r`.

    Raises:
        FitError: the count is out of range.
    """
    if not rank <= count <= min(widths):
        raise FitError(f"{count} directions: expected {rank} to {min(widths)}")


def best_directions(start: Map, moments: Moments, count: int) -> Tensor:
    """The source's directions that tell most of the target, best first, `[d_s, k]`.

    Args:
        start: a closed form from these moments, `low_rank` by regression or `ridge`.
        moments: of training pairs.
        count: k, at least the map's rank if it has one.

    Raises:
        FitError: another family, or the count is out of range.
    """
    low = isinstance(start, LowRankMatrix) and start.family.start == "regression"
    if not low and not isinstance(start.family, Ridge):
        raise FitError(
            f"only 'low_rank' started from a regression and 'ridge' have directions, not "
            f"'{start.family.name}'"
        )
    xx, xy = moments.normalised()
    require_count(count, start.rank if low else 1, xy.shape)
    weight = start.ridge_weight or start.family.weight  # type: ignore[attr-defined]
    if isinstance(start, LowRankMatrix) and (metric := start.metric(moments)) is not None:
        xy = metric.times(xy, 0.5)
    return torch.from_numpy(rank_regression(xx, xy, count, weight)[0]).float()


class Tuned(nn.Module):
    """`y = [x W] + (x P) A B`, on z-scores; P and W are frozen.

    Attributes:
        directions: P, `[d_s, k]`; `x P` has unit variance and no correlations.
        inner: A, `[k, r]`; None without a rank limit.
        outer: B, `[r, d_r]`, or `[k, d_r]`.
        base: W, `[d_s, d_r]`, or None.
    """

    directions: Tensor
    base: Tensor | None

    def __init__(self, start: Map, directions: Tensor) -> None:
        """Start from a closed form.

        Args:
            start: reduced-rank regression of rank r, or a whole matrix.
            directions: P; the first r of them span the map's own.
        """
        super().__init__()
        self.start = [start]  # in a list, so its weights are neither trained nor stored
        width, rank = directions.shape[1], start.rank
        self.register_buffer("directions", directions, persistent=False)
        self.inner: nn.Parameter | None = None
        base = None
        with torch.no_grad():
            if isinstance(start, LowRankMatrix):
                self.inner = nn.Parameter(torch.eye(width, rank))
                onward = (start.u * start.sigma).T.clone()
                mine = directions[:, :rank]
                if not torch.equal(mine, start.v):  # same span, other basis
                    turn = torch.linalg.lstsq(mine.double(), start.v.double()).solution
                    onward = turn.float() @ onward
                self.outer = nn.Parameter(onward)
            else:
                weights = start.weights()
                assert weights is not None
                base = weights.detach()
                self.outer = nn.Parameter(torch.zeros(width, start.target.state_dim))
        self.register_buffer("base", base, persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Tuned:
        self.start[0]._apply(fn)  # type: ignore[no-untyped-call]  # follows a change of device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Source states `[B, N, d_s]` to z-scored target states `[B, M, d_r]`."""
        normal = self.start[0].regrid(self.start[0].normal(x))
        told = normal @ self.directions
        moved: Tensor = (told if self.inner is None else told @ self.inner) @ self.outer
        if self.base is None:
            return moved
        with torch.no_grad(), products(x.device.type):
            whole = normal @ self.base
        return moved + whole.float()

    @property
    def y_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the target's states, `[d_r]` each."""
        return self.start[0].y_stats

    def travel(self, x: Tensor, way: Way = WHOLE) -> tuple[Tensor, Tensor]:
        """Target states and zero bits: in training, latents are never rounded here."""
        return self.start[0].states(self.predict(x)), torch.zeros(())

    def penalty(self) -> Tensor:
        """No extra loss term: zero."""
        return torch.zeros(())

    def groups(self) -> list[dict[str, Any]]:
        """All parameters, at one learning rate."""
        return [{"params": list(self.parameters()), "scale": 1.0}]

    def merged(self) -> Map:
        """The result as a map of the starting family."""
        start = self.start[0]
        made: Map
        with torch.no_grad():
            if self.inner is not None:
                assert isinstance(start, LowRankMatrix)
                low = LowRankMatrix(start.family, start.source, start.target)
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
        made.ridge_weight = start.ridge_weight
        return made.eval()
