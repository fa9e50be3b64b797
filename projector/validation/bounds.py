"""How far a projected state can be from the true one: the guaranteed and the statistical part.

`||y - C(z')|| <= ||y - C(z)|| + Lip(C) ||z - z'||`. The second term is guaranteed where C is linear
(its exact operator norm). The first is statistical: a split-conformal quantile over held-out frames
(Vovk et al., 2005). From 299 frames on it covers 99 % of frames in 95 of 100 calibrations (Vovk,
2012). It is void under shift. Both terms are loose, so steering uses the expected error
`||J||_F / sqrt(d) ||z - z'||` instead. Norms are Frobenius norms over a frame, in z-scores of the
target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector.maps.base import Map
from projector.training.corpus import Corpus
from projector.training.ragged import present
from protos.errors import FitError
from protos.quantize import get as quantizer

LEVEL = 0.99
CONFIDENCE = 0.95
_BATCH = 64
_CALIBRATION = 128

Quantize = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Turns latents `[..., r]` into what the cloud reads."""


@dataclass(frozen=True)
class Bound:
    """A calibrated bound for one map.

    Attributes:
        lipschitz: exact operator norm of the cloud half on a frame's latents: the norm for one
            token (tokens are mapped one by one) times that of the interpolation between two grids.
        expected: `||J||_F / sqrt(d)` over a frame's d latents.
        residual: conformal 99 % quantile of `||y - C(z)||` (`conformal_rank`).
        frames: how many frames it was calibrated on.
    """

    lipschitz: float
    expected: float
    residual: float
    frames: int

    @classmethod
    def calibrate(cls, made: Map, corpus: Corpus) -> Bound:
        """From held-out frames that the map was not fitted to.

        Raises:
            FitError: too few frames for the level (fewer than 99), or a cloud half without an
                exact norm: it is not linear, or its tokens depend on each other.
        """
        matrix = cloud_matrix(made)
        if len(corpus) < math.ceil(LEVEL / (1 - LEVEL) - 1e-9):
            raise FitError(f"{len(corpus)} frames: a {LEVEL:.0%} quantile needs 99 or more")
        residual = np.sort(frame_errors(made, corpus, None)[0])
        return cls(
            lipschitz=made.grid_norm * float(np.linalg.svd(matrix, compute_uv=False)[0]),
            expected=_grid_spread(made) * float(np.linalg.norm(matrix) / math.sqrt(len(matrix))),
            residual=float(residual[conformal_rank(len(residual)) - 1]),
            frames=len(corpus),
        )

    def check(self, made: Map, corpus: Corpus, quantize: Quantize) -> dict[str, Any]:
        """The bound against what happens on other frames.

        Returns:
            `coverage` (share of frames within the bound), `violations` (1 - coverage),
            `guarantee_violations` (`||C(z) - C(z')||` above `Lip(C) ||z - z'||`: must be 0), and
            `frames`: `actual`, `bound`, `added` and `estimate` of each. `added` is the error that
            quantization adds, `estimate` its expected value. `bound_over_actual` and
            `estimate_over_actual` are means over frames that have an error, None if none has.
        """
        actual, added, moved = frame_errors(made, corpus, quantize)
        bound = self.residual + self.lipschitz * moved
        within = float((actual <= bound).mean())
        some, off = added > 0, actual > 0
        ratio = float((self.expected * moved[some] / added[some]).mean()) if some.any() else None
        return {
            "coverage": within,
            "violations": 1 - within,
            "bound_over_actual": float((bound[off] / actual[off]).mean()) if off.any() else None,
            "estimate_over_actual": ratio,
            "guarantee_violations": float((added > self.lipschitz * moved * (1 + 1e-5)).sum()),
            "frames": {
                name: [round(float(v), 4) for v in values]
                for name, values in (
                    ("actual", actual),
                    ("bound", bound),
                    ("added", added),
                    ("estimate", self.expected * moved),
                )
            },
        }


def conformal_rank(frames: int) -> int:
    """Rank of the calibration error that is the 99 % quantile of further frames; 1: the smallest.

    From 299 frames on it is n - j: in 95 of 100 calibrations at least 99 % of all frames lie below
    that error. j is the largest with `P(Binomial(n, 0.01) <= j) <= 0.05` (Vovk, 2012,
    arXiv:1209.2673). With fewer frames no rank does that; it is then the rank that covers 99 % on
    average.
    """
    chance, exceeding, most = LEVEL**frames, 0.0, -1
    while exceeding + chance <= 1 - CONFIDENCE:
        exceeding, most = exceeding + chance, most + 1
        chance *= (frames - most) / (most + 1) * (1 - LEVEL) / LEVEL
    if most >= 0:
        return frames - most
    return min(math.ceil((frames + 1) * LEVEL - 1e-9), frames)


def judge_bound(made: Map, corpus: Corpus) -> dict[str, Any]:
    """Calibrate on every other frame, check on the rest, latents through FP8.

    Returns:
        What `Bound.check` returns, with the bound's own `lipschitz`, `expected` and `residual`.

    Raises:
        FitError: as `Bound.calibrate`.
    """
    if corpus.ragged:
        raise FitError("texts differ in length, and the bound is of frames of one grid")
    even = np.arange(len(corpus)) % 2 == 0
    one, other = (corpus.part(half) for half in (even, ~even))
    bound = Bound.calibrate(made, one)
    found = bound.check(made, other, through_fp8(made, one))
    return {
        **found,
        "lipschitz": bound.lipschitz,
        "expected": bound.expected,
        "residual": bound.residual,
    }


def through_fp8(made: Map, corpus: Corpus) -> Quantize:
    """Latents through E4M3 with one static scale per number, as the codec's high-rate point."""
    with torch.no_grad():
        x = corpus.x[:_CALIBRATION].astype(np.float32)
        z = made.down(made.normal(torch.from_numpy(x[present(x)])))
    # E4M3 reaches 448: the largest calibration value lands at half of that.
    steps = (z.abs().amax(0) / 224.0 + 1e-8).numpy()
    codec = quantizer("fp8_e4m3", None)

    def through(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        there = present(latents)
        flat = np.ascontiguousarray(latents[there])
        read = np.full_like(latents, np.nan)
        read[there] = codec.decode(codec.encode(flat, steps), len(flat), flat.shape[1], steps)
        return read

    return through


def cloud_matrix(made: Map) -> npt.NDArray[np.float64]:
    """The cloud half as a matrix `[r, d_r]`, tokens already on the target's grid.

    Raises:
        FitError: it is not linear, or its tokens depend on each other.
    """
    if made.weights() is None or made.target.qk_norm:
        raise FitError(
            f"the cloud half of '{made.family.name}' is not one linear map per token"
            f"{' (the target normalises its keys)' if made.target.qk_norm else ''}: it has no "
            "exact norm, and an estimated norm guarantees nothing"
        )
    with torch.no_grad():
        eye = torch.eye(made.rank)[None]
        moved = made.up(eye) - made.up(torch.zeros_like(eye))
    matrix: npt.NDArray[np.float64] = moved[0].double().numpy()
    return matrix


def _grid_spread(made: Map) -> float:
    """`||G||_F / sqrt(N)` of the interpolation between the grids; 1 on one grid."""
    grid = made.to_grid
    return 1.0 if grid is None else float(grid.double().norm()) / math.sqrt(grid.shape[1])


def frame_errors(
    made: Map, corpus: Corpus, quantize: Quantize | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per frame `||y - C(z')||`, `||C(z) - C(z')||` and `||z - z'||`, `[n]` each.

    Args:
        made: the map.
        corpus: frames.
        quantize: makes z' of z; None for z' = z.
    """
    parts: list[list[npt.NDArray[np.float64]]] = [[], [], []]
    mean, scale = made.y_stats

    def size(x: Tensor) -> npt.NDArray[np.float64]:
        norms: npt.NDArray[np.float64] = x.flatten(1).double().norm(dim=1).numpy()
        return norms

    with torch.no_grad():
        for begin in range(0, len(corpus), _BATCH):
            x = torch.from_numpy(corpus.x[begin : begin + _BATCH].astype(np.float32))
            y = torch.from_numpy(corpus.y[begin : begin + _BATCH].astype(np.float32))
            z = made.down(made.normal(x))
            read = z if quantize is None else torch.from_numpy(quantize(z.numpy()))
            there, exact = made.cloud(read), made.cloud(z)
            parts[0].append(size((y - mean) / scale - there))
            parts[1].append(size(exact - there))
            parts[2].append(size(z - read))
    first, second, third = (np.concatenate(part) for part in parts)
    return first, second, third
