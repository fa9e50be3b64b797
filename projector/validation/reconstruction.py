"""How near projected states are to the true ones, as a whole and per layer (torch)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from projector.training.corpus import Corpus

_BATCH = 32


def reconstruction(made: Any, corpus: Corpus) -> dict[str, Any]:
    """Fit on held-out pairs, in z-scores of the target: whole, and per layer for K and V apart.

    Args:
        made: a map of either sort (`projector.training.train.Trainable`).
        corpus: held-out pairs.

    Returns:
        `whole` and `layers[]`, each with `cosine` (mean over tokens), `mse`, `relative_l2`
        (`||y - y'|| / ||y||`), `r2`; the last two are None if all states are alike. And `epsilon`,
        the RMSE over all numbers.
    """
    mean, scale = made.y_stats
    width = corpus.y.shape[-1]
    sums = np.zeros((5, width))  # y^2, (y - y')^2, y, per number; cosines follow per layer
    cosines: list[npt.NDArray[np.float64]] = []
    whole_cosine, tokens = 0.0, 0
    layout = getattr(made, "target", None)
    layers = layout.layers if layout is not None else 1
    with torch.no_grad():
        for begin in range(0, len(corpus), _BATCH):
            x = torch.from_numpy(corpus.x[begin : begin + _BATCH].astype(np.float32))
            y = torch.from_numpy(corpus.y[begin : begin + _BATCH].astype(np.float32))
            there = ~y[..., 0].isnan()
            want = ((y - mean) / scale)[there]
            got = made.predict(x)[there]
            sums[0] += want.square().sum(0).numpy()
            sums[1] += (want - got).square().sum(0).numpy()
            sums[2] += want.sum(0).numpy()
            one, other = (part.unflatten(-1, (2, layers, -1)) for part in (want, got))
            along = torch.nn.functional.cosine_similarity(one, other, dim=-1)
            cosines.append(along.sum(0).double().numpy())
            whole_cosine += float(torch.nn.functional.cosine_similarity(want, got, dim=-1).sum())
            tokens += len(want)
    square, error, total = sums[0], sums[1], sums[2]
    spread = square - total * total / tokens
    each = np.sum(cosines, axis=0) / tokens  # [2, layers]

    def figures(columns: slice, cosine: float) -> dict[str, float | None]:
        lost = _share(error[columns], spread[columns])
        return {
            "cosine": cosine,
            "mse": float(error[columns].sum() / tokens / error[columns].size),
            "relative_l2": _root(_share(error[columns], square[columns])),
            "r2": None if lost is None else 1 - lost,
        }

    block = width // (2 * layers)
    rows = []
    for layer in range(layers):
        row: dict[str, Any] = {"layer": layer}
        for part, name in enumerate(("keys", "values")):
            start = (part * layers + layer) * block
            row[name] = figures(slice(start, start + block), float(each[part, layer]))
        rows.append(row)
    half = width // 2
    return {
        "whole": figures(slice(0, width), whole_cosine / tokens),
        "keys": figures(slice(0, half), float(each[0].mean())),
        "values": figures(slice(half, width), float(each[1].mean())),
        "layers": rows,
        "epsilon": float(math.sqrt(error.sum() / tokens / width)),
        "residual_variance": _share(error, spread),
    }


def _share(error: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> float | None:
    """An error as a share of the whole; None if the whole is 0."""
    return float(error.sum() / whole.sum()) if whole.sum() > 0 else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)
