"""Diagnostics of a map beside its answers: rank, condition, amplification (torch)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projector.maps.base import Map
from projector.maps.low_rank import LowRankMatrix
from protos.errors import FitError

CONDITION_LIMIT = 1000.0
_NEGLIGIBLE = 0.01
_TOLD = 1e-7


def diagnostics(made: Any) -> dict[str, Any]:
    """Effective rank, condition number, operator norm; None for a map that is not linear."""
    weights = made.weights() if isinstance(made, Map) else None
    if weights is None:
        return {"effective_rank": None, "condition_number": None, "operator_norm": None}
    small = weights.detach().double()
    if isinstance(made, LowRankMatrix):  # r x r, with the same singular values
        v, u = (torch.linalg.qr(side.detach().double())[1] for side in (made.v, made.u))
        small = (v * made.sigma.detach().double()) @ u.T
    values = np.linalg.svd(small.numpy(), compute_uv=False)
    values = values[values > values[0] * 1e-12]
    rank = min(made.rank, len(values))
    condition = float(values[0] / values[rank - 1])
    return {
        "effective_rank": int((values > _NEGLIGIBLE * values[0]).sum()),
        "condition_number": condition,
        "condition_flagged": condition > CONDITION_LIMIT,
        # A map that gives keys a length is not linear, whatever its matrix.
        "operator_norm": None if made.target.qk_norm else float(values[0]) * made.grid_norm,
        "singular_values": [float(v) for v in values[: made.rank]],
    }


def principal(made: Map, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components of a linear map's predictions on some states: `W = U diag(s) V`.

    The first k components are the best map of rank k to these predictions (as in reduced-rank
    regression; Izenman, 1975).

    Args:
        made: a linear map.
        x: z-scored source states `[n, d_s]`.

    Returns:
        `U [d_s, k]`, `s [k]`, `V [k, d_r]`, without components that the sample does not determine.
    """
    weights = made.weights()
    if weights is None:
        raise FitError(f"'{made.family.name}' is not linear: it has no principal components")
    # The components of the predictions are those of W: no d_s x d_s covariance is decomposed.
    given = x.double() / len(x) ** 0.5
    if isinstance(made, LowRankMatrix):
        # In an orthonormal basis of U's span a prediction has r numbers.
        basis, onward = torch.linalg.qr(made.u.double())
        _, s, v = torch.linalg.svd(given @ (made.v * made.sigma).double() @ onward.T, False)
        v = v @ basis.T
    else:
        _, s, v = torch.linalg.svd(given @ weights.double(), full_matrices=False)
    told = s > s[0] * _TOLD
    s, v = s[told], v[told]
    return (weights.double() @ v.T / s).float(), s.float(), v.float()


def lower_ranks(made: Map) -> list[int]:
    """Lower ranks that a linear map is cut to."""
    if made.weights() is None:
        return []
    return [rank for rank in (4 << i for i in range(20)) if rank < made.rank]


def amplification(
    variation: Sequence[float], kinds: Sequence[str], rel_l2: float | None, telling: Collection[str]
) -> dict[str, dict[str, float | None]]:
    """Measured `C_attn = D_task / delta_rel` per kind of question.

    `within_0.1` is None for kinds that are not in `telling`. `D_task` is the mean total variation
    distance between the answers' distributions from the native and from the projected cache;
    `delta_rel` the mean relative L2 error of the states.
    """
    grouped: dict[str, list[float]] = {}
    for value, kind in zip(variation, kinds, strict=True):
        grouped.setdefault(kind, []).append(value)
    return {
        kind: {
            "d_task": float(np.mean(values)),
            "c_attn": float(np.mean(values)) / rel_l2 if rel_l2 else None,
            "within_0.1": bool(np.mean(values) <= 0.1) if kind in telling else None,
        }
        for kind, values in sorted(grouped.items())
    }
