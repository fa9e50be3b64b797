"""Maps between two real language models, in closed form, from moments kept by folds (torch).

With a `d_s` of ten thousand one Gram matrix costs more than everything else. So it is made once, in
folds; each seed leaves another fold out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projector.maps.base import Map
from projector.maps.low_rank import LowRank, LowRankMatrix
from projector.maps.metric import Metric
from projector.maps.moments import Moments
from projector.maps.ridge import MatrixMap, Ridge
from protos.errors import FitError
from protos.layout import KVLayout
from protos.process.files import write_file

_SPARE = 64  # extra directions of the randomised decomposition
_POWER = 4
_LEAST_EXPLAINED = 0.05  # of a head's variance; a head explained less is not stretched


def keep(moments: Moments, path: Path) -> None:
    """Write moments in float32, whole or not at all."""
    arrays: dict[str, Any] = {
        name: value.astype(np.float32) if value.ndim > 1 else value
        for name, value in vars(moments).items()
        if isinstance(value, np.ndarray)
    }
    blob = io.BytesIO()
    np.savez(blob, count=moments.count, **arrays)
    write_file(path, [blob.getbuffer()])


def kept(path: Path) -> Moments:
    """Read what `keep` wrote."""
    with np.load(path, allow_pickle=False) as read:
        arrays = {name: read[name].astype(np.float64) for name in read if name != "count"}
        return Moments(float(read["count"]), **arrays)


def source_columns(layout: KVLayout, layers: int) -> Tensor:
    """Indices in a flat state of `layers` evenly spread layers, the last among them, `[d]`."""
    if not 1 <= layers <= layout.layers:
        raise FitError(f"{layers} source layers: the model has {layout.layers}")
    chosen = layout.layers - 1 - (np.arange(layers) * layout.layers) // layers
    mask = np.zeros((2, layout.layers, layout.kv_heads * layout.head_dim), dtype=bool)
    mask[:, chosen] = True
    return torch.from_numpy(np.flatnonzero(mask))


def closed_forms(
    moments: Moments,
    source: KVLayout,
    target: KVLayout,
    ranks: Sequence[int],
    weight: float,
    columns: Tensor,
    metric: Metric | None = None,
    directions: int = 0,
) -> tuple[dict[int, Map], Tensor]:
    """Ridge (rank 0) and reduced-rank regressions, by one Cholesky decomposition.

    The same solutions as `projector.maps`, with a randomised decomposition (Halko et al., 2011)
    instead of a full one.

    Args:
        moments: of training pairs.
        source: layout of `x`.
        target: layout of `y`.
        ranks: numbers per token.
        weight: the ridge weight.
        columns: indices of the source's numbers to use; the map's weights for others are 0.
        metric: cost of the target's errors, for the maps with a rank; by default each number's own
            variance.
        directions: least number of the source's best directions to return.

    Returns:
        Maps by rank, and the directions `[d_s, k]`, those that explain most first. The map of rank
        r sends the first r.
    """
    xx, xy = (torch.from_numpy(part) for part in moments.normalised())
    xx, xy = xx[columns][:, columns], xy[columns]
    xx.diagonal().add_(weight)
    lower, failed = torch.linalg.cholesky_ex(xx)
    if failed:
        raise FitError("the source's Gram matrix is singular: use a larger ridge weight")
    del xx
    whitened = torch.linalg.solve_triangular(lower, xy, upper=False)
    del xy
    made: dict[int, Map] = {}
    full = MatrixMap(Ridge(weight=weight), source, target)
    _fill(full.matrix, columns, torch.linalg.solve_triangular(lower.T, whitened, upper=True))
    with torch.no_grad():
        told = whitened.square().sum(0) - weight * full.matrix.square().sum(0)
        full.matrix.mul_(key_gain(told.float(), target))
    made[0] = full
    torch.manual_seed(0)
    if metric is not None:
        whitened = torch.from_numpy(metric.times(whitened.numpy(), 0.5))
    left, sigma, right = torch.svd_lowrank(whitened, max(*ranks, directions) + _SPARE, niter=_POWER)
    if metric is not None:
        right = torch.from_numpy(metric.times(right.T.numpy(), -0.5)).T
    best = torch.zeros(source.state_dim, max(*ranks, directions))
    _fill(
        best, columns, torch.linalg.solve_triangular(lower.T, left[:, : best.shape[1]], upper=True)
    )
    for rank in ranks:
        low = LowRankMatrix(LowRank(r=rank, weight=weight), source, target)
        with torch.no_grad():  # unit-variance latents, U orthonormal in the metric
            low.v.copy_(best[:, :rank])
            low.sigma.copy_(sigma[:rank].float())
            low.u.copy_(right[:, :rank].float())
            told = (low.u * low.sigma).square().sum(1)  # latents have unit variance
            low.u.mul_(key_gain(told, target)[:, None])
        made[rank] = low
    for member in made.values():
        member.take_statistics(moments)
        member.eval()
    return made, best


def key_gain(explained: Tensor, target: KVLayout) -> Tensor:
    """Factors for predicted z-scores that make keys spread as widely as the target's own.

    A regression shrinks what it is unsure of, and keys that are too alike attend too evenly. If the
    target normalises its keys all factors are 1: `Map.states` gives keys their length.

    Args:
        explained: variance that the regression gives each number, `[d_r]`.
        target: the target's layout; the keys of a head share one factor.

    Returns:
        `[d_r]`, 1 for values.
    """
    gain = torch.ones_like(explained).view(2, target.layers * target.kv_heads, target.head_dim)
    if not target.qk_norm:
        head = explained.view_as(gain)[0].mean(dim=1, keepdim=True)
        gain[0] = head.clamp(min=_LEAST_EXPLAINED).rsqrt()
    return gain.flatten()


def _fill(matrix: Tensor, columns: Tensor, rows: Tensor) -> None:
    with torch.no_grad():
        matrix.zero_()
        matrix[columns] = rows.float()
