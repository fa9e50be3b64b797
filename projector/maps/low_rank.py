"""`low_rank`, the W-Matrix: `W = U diag(s) V^T + b`; `V^T` runs on the edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from projector.maps.base import Family, Map
from projector.maps.closed_form import rank_regression
from projector.maps.metric import Metric
from projector.maps.moments import Moments, best_weight
from projector.maps.ridge import head_gains
from protos.errors import FitError
from protos.layout import KVLayout

STARTS = ("regression", "covariance")
METRICS = ("variance", "answers")


@dataclass(frozen=True)
class LowRank(Family):
    """Sends r numbers per token; has `r (d_s + d_r + 1) + d_r` parameters.

    Attributes:
        r: numbers per token.
        start: `regression`, reduced-rank regression (Izenman, 1975), or `covariance`, the truncated
            SVD of the centred cross-covariance `C = y^T x / n`, each component with its own gain.
        weight: ridge weight of the regression.
        spread: as in `ridge`; only for the regression.
        choose: as in `ridge`; only for the regression.
        metric: the errors that the fit minimises: all dimensions of a z-scored state equally
            (`variance`), or those that the frozen target's `answers` depend on
            (`projector/training/sensitivity.py`).
    """

    name: ClassVar[str] = "low_rank"
    absent: ClassVar[dict[str, Any]] = {"spread": False}
    r: int = 64
    start: str = "regression"
    weight: float = 1e-3
    spread: bool = True
    choose: bool = False
    metric: str = "variance"

    @property
    def asks_answers(self) -> bool:
        """True for the metric `answers`."""
        return self.metric == "answers"

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        most = min(source.state_dim, target.state_dim)
        if not 1 <= self.r <= most:
            raise FitError(
                f"rank {self.r}: expected 1 to {most}, the smaller of d_s={source.state_dim} and "
                f"d_r={target.state_dim}"
            )
        if self.start not in STARTS:
            raise FitError(f"start '{self.start}': expected one of {', '.join(STARTS)}")
        if self.metric not in METRICS:
            raise FitError(f"metric '{self.metric}': expected one of {', '.join(METRICS)}")
        return LowRankMatrix(self, source, target)


class LowRankMatrix(Map):
    """Weights of `low_rank`: `v [d_s, r]`, `sigma [r]`, `u [d_r, r]`, `bias [d_r]`."""

    family: LowRank

    def __init__(self, family: LowRank, source: KVLayout, target: KVLayout) -> None:
        super().__init__(family, source, target)
        self.v = nn.Parameter(torch.zeros(source.state_dim, family.r))
        self.sigma = nn.Parameter(torch.zeros(family.r))
        self.u = nn.Parameter(torch.zeros(target.state_dim, family.r))
        self.bias = nn.Parameter(torch.zeros(target.state_dim))

    def fit(self, moments: Moments) -> None:
        """Fit with orthonormal U and V, from either start."""
        xx, xy = moments.normalised()
        r = self.family.r
        if self.family.start == "regression":
            self.ridge_weight = best_weight(moments) if self.family.choose else self.family.weight
            metric = self.metric(moments)
            asked = xy if metric is None else metric.times(xy, 0.5)
            down, up, _ = rank_regression(xx, asked, r, self.ridge_weight)
            if metric is not None:
                up = metric.times(up, -0.5)
            if self.family.spread:
                up = up * head_gains(self.target, down.T @ xx @ down, up)
            # W = down up; QR of both sides leaves a small matrix for the SVD.
            q_down, r_down = np.linalg.qr(down)
            q_up, r_up = np.linalg.qr(up.T)
            left, sigma, right = np.linalg.svd(r_down @ r_up.T)
            v, u = q_down @ left, q_up @ right.T
        else:
            left, values, right = np.linalg.svd(xy, full_matrices=False)
            v, u = left[:, :r], right[:r].T
            sigma = values[:r] / np.maximum(np.einsum("dr,dr->r", v, xx @ v), 1e-12)
        for parameter, array in ((self.v, v), (self.sigma, sigma), (self.u, u)):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)).float())

    def metric(self, moments: Moments) -> Metric | None:
        """The cost of errors in the target; None for the metric `variance`.

        Raises:
            FitError: the metric `answers` was not measured.
        """
        if self.family.metric == "variance":
            return None
        if moments.metric is None:
            raise FitError("metric 'answers' has to be measured on the target, and was not")
        return moments.metric

    @property
    def rank(self) -> int:
        """Numbers per token, r."""
        return self.family.r

    def down(self, x: Tensor) -> Tensor:
        """`V^T x`, `[..., r]`."""
        return x @ self.v

    def up(self, z: Tensor) -> Tensor:
        """`U diag(s) z + b`, `[..., d_r]`."""
        return (z * self.sigma) @ self.u.T + self.bias

    def weights(self) -> Tensor:
        """`V diag(s) U^T`, `[d_s, d_r]`."""
        return (self.v * self.sigma) @ self.u.T

    def penalty(self) -> Tensor:
        """`||U^T U - I||_F + ||V^T V - I||_F`; training keeps it small."""
        eye = torch.eye(self.rank, device=self.u.device)
        return sum(((side.T @ side - eye).norm() for side in (self.u, self.v)), torch.zeros(()))
