"""Maps between two real language models, in closed form, from moments kept by folds (torch).

Knows moments, layouts, families. Knows no models, no texts. At `d_s` of ten thousand one Gram
matrix costs more than everything else, so it is made once: in folds, of which each seed leaves
another out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projector.families.base import Map
from projector.families.low_rank import LowRank, LowRankMatrix
from projector.families.ridge import MatrixMap, Ridge
from projector.moments import Moments
from protos.errors import FitError
from protos.layout import KVLayout

_SPARE = 64  # directions more than asked for, in the randomised decomposition
_POWER = 4


def keep(moments: Moments, path: Path) -> None:
    """Write moments in float32, whole or not at all."""
    draft = path.with_suffix(".part")
    arrays: dict[str, Any] = {
        name: value.astype(np.float32) if value.ndim > 1 else value
        for name, value in vars(moments).items()
        if isinstance(value, np.ndarray)
    }
    with draft.open("wb") as stream:
        np.savez(stream, count=moments.count, **arrays)
    draft.replace(path)


def kept(path: Path) -> Moments:
    """Read what `keep` wrote."""
    with np.load(path, allow_pickle=False) as read:
        arrays = {name: read[name].astype(np.float64) for name in read if name != "count"}
        return Moments(int(read["count"]), **arrays)


def source_columns(layout: KVLayout, layers: int) -> Tensor:
    """Places in a flat state of so many layers, evenly spread and the last among them, `[d]`."""
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
) -> dict[int, Map]:
    """Ridge (rank 0) and reduced-rank regressions, by one Cholesky decomposition.

    The same solutions as `projector.families`, with a randomised decomposition (Halko et al., 2011)
    in the place of a full one.

    Args:
        moments: of training pairs.
        source: layout of `x`.
        target: layout of `y`.
        ranks: numbers per token.
        weight: of the ridge.
        columns: which of the source's numbers are used; the map's weights for others are 0.
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
    made[0] = full
    torch.manual_seed(0)
    left, sigma, right = torch.svd_lowrank(whitened, max(ranks) + _SPARE, niter=_POWER)
    for rank in ranks:
        down = torch.linalg.solve_triangular(lower.T, left[:, :rank], upper=True)
        low = LowRankMatrix(LowRank(r=rank, weight=weight), source, target)
        _fill(low.v, columns, down)
        with torch.no_grad():  # unit-variance latents, orthonormal U
            low.sigma.copy_(sigma[:rank].float())
            low.u.copy_(right[:, :rank].float())
        made[rank] = low
    for member in made.values():
        member.take_statistics(moments)
        member.eval()
    return made


def _fill(parameter: Tensor, columns: Tensor, rows: Tensor) -> None:
    with torch.no_grad():
        parameter.zero_()
        parameter[columns] = rows.float()
