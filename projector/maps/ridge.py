"""`ridge`: one full matrix in closed form, with a choice of source layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from projector.maps.base import Family, Map
from projector.maps.moments import Doubles, Moments, best_weight, ridge
from protos.errors import FitError
from protos.layout import KVLayout

LAYER_CHOICES = ("all", "best", "last")
_MOST_GAIN = 4.0  # for a poorly predicted head; more would amplify noise


@dataclass(frozen=True)
class Ridge(Family):
    """`W = argmin ||y - x W||^2 + weight ||W||_F^2` on z-scores.

    Attributes:
        weight: ridge weight, in units of the mean variance of a source dimension.
        choose: use the weight that fits held-out pairs best, instead of `weight`.
        layers: the source layers that predict each target layer: `all`; `best`, the `best_layers`
            that each fit it best alone on held-out pictures; `last`, `best_layers` of them,
            aligned from the last layer down.
        best_layers: k.
        spread: stretch each head's prediction about its mean until it varies as much as the
            target. Least squares pulls predictions towards the mean, which flattens attention.
    """

    name: ClassVar[str] = "ridge"
    absent: ClassVar[dict[str, Any]] = {"spread": False}
    weight: float = 1e-3
    layers: str = "all"
    best_layers: int = 2
    spread: bool = True
    choose: bool = False

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        if self.layers not in LAYER_CHOICES:
            raise FitError(f"layers '{self.layers}': expected one of {', '.join(LAYER_CHOICES)}")
        if not 1 <= self.best_layers <= source.layers and self.layers != "all":
            raise FitError(
                f"{self.best_layers} source layers to choose, the model has {source.layers}"
            )
        return MatrixMap(self, source, target)


class MatrixMap(Map):
    """One matrix on z-scores; the base of all closed forms without a norm."""

    def __init__(self, family: Family, source: KVLayout, target: KVLayout) -> None:
        super().__init__(family, source, target)
        start = torch.zeros(source.state_dim, target.state_dim)
        self.matrix = nn.Parameter(start)

    def fit(self, moments: Moments) -> None:
        """Ridge regression from the chosen layers."""
        if isinstance(self.family, Ridge):
            fitted = fit_ridge(self.family, self, moments)
            if self.family.spread:
                fitted = fitted * head_gains(self.target, moments.normalised()[0], fitted)
            self.matrix.copy_(torch.from_numpy(fitted).float())

    def up(self, z: Tensor) -> Tensor:
        """`[B, N, d_s]` to `[B, N, d_r]`."""
        return z @ self.matrix

    def weights(self) -> Tensor:
        """The matrix `[d_s, d_r]` on z-scores."""
        return self.matrix


def head_gains(target: KVLayout, xx: Doubles, weights: Doubles) -> Doubles:
    """Gains that make each head of a linear prediction vary as much as the target, `[d_r]`.

    Args:
        target: the target's layout.
        xx: covariance of z-scored source states, `[d_s, d_s]`.
        weights: `[d_s, d_r]`, to z-scored target states.

    Returns:
        One gain per head of keys and of values, 1 to 4: `1 / sqrt` of the variance explained.
    """
    explained = np.einsum("dr,dr->r", weights, xx @ weights)
    heads = explained.reshape(-1, target.head_dim).mean(axis=1)
    gains: Doubles = np.clip(np.maximum(heads, 1e-12) ** -0.5, 1.0, _MOST_GAIN)
    return np.repeat(gains, target.head_dim)


def layer_of(layout: KVLayout) -> npt.NDArray[np.int64]:
    """The layer of each number of a flat state, `[d]` (keys|values, layer, head, channel)."""
    each = layout.kv_heads * layout.head_dim
    return np.tile(np.repeat(np.arange(layout.layers), each), 2)


def fit_ridge(family: Ridge, made: Map, moments: Moments) -> Doubles:
    """The ridge matrix `[d_s, d_r]` with the family's choice of layers."""
    weight = best_weight(moments) if family.choose else family.weight
    made.ridge_weight = weight
    xx, xy = moments.normalised()
    if family.layers == "all":
        return ridge(xx, xy, weight)
    of_source, of_target = layer_of(made.source), layer_of(made.target)
    weights = np.zeros_like(xy)
    for group, columns in _groups(family, made, moments, weight, of_source, of_target):
        rows = np.flatnonzero(np.isin(of_source, group))
        weights[np.ix_(rows, columns)] = ridge(
            xx[np.ix_(rows, rows)], xy[np.ix_(rows, columns)], weight
        )
    return weights


def _groups(
    family: Ridge,
    made: Map,
    moments: Moments,
    weight: float,
    of_source: npt.NDArray[np.int64],
    of_target: npt.NDArray[np.int64],
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """For each target layer, its source layers and its columns."""
    deep, wide = made.source.layers, made.target.layers
    xx, xy = moments.normalised()
    if family.layers == "last":
        chosen = {}
        for layer in range(wide):
            last = deep - 1 - min(deep - family.best_layers, (wide - 1 - layer))
            chosen[layer] = np.arange(last - family.best_layers + 1, last + 1)
    else:
        held = moments.held or moments
        judged_xx, judged_xy = held.normalised(moments.x_stats, moments.y_stats)
        explained = np.zeros((deep, wide))
        for one in range(deep):
            rows = np.flatnonzero(of_source == one)
            alone = ridge(xx[np.ix_(rows, rows)], xy[rows], weight)
            # Gain over predicting the mean: |y|^2 - |y - x W|^2.
            apart = 2 * judged_xy[rows] - judged_xx[np.ix_(rows, rows)] @ alone
            gained = np.einsum("dr,dr->r", alone, apart)
            explained[one] = np.bincount(of_target, weights=gained, minlength=wide)
        order = np.argsort(-explained, axis=0, kind="stable")[: family.best_layers]
        chosen = {layer: np.sort(order[:, layer]) for layer in range(wide)}
    return [(chosen[layer], np.flatnonzero(of_target == layer)) for layer in range(wide)]
