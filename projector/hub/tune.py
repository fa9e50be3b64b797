"""Tunes an edge half through the frozen hub and large model, with rounding in the loop (torch).

The closed form is kept; what is added to it starts at zero and sees the small model's state as
uncorrelated numbers of unit variance, none of them left out: leaving out small ones ruins it. Where
grids differ, the weights between them are learnt too. Nothing of the hub changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from projector import maps
from projector.calibration.calibrate import FINEST
from projector.codec.arrays import Floats
from projector.codec.encoder import Encoder
from projector.hub.half import FittedHalf, folded
from projector.maps import Map
from projector.maps.rounding import WHOLE, Rounding, Way, bits
from projector.training.settings import TrainSettings
from protos.layout import KVLayout

SETTINGS = TrainSettings(
    task_steps=200,
    batch=16,
    questions=6,
    rate=3e-3,
    task_rate=3e-3,
    step_scale=4.0,
    rate_weight=0.02,
    quiet=6.0,
)
"""Some three minutes on two cores for the reference pair."""
_GRID_RATE = 1 / 3
_LEAST_VARIANCE = 1e-6  # of the mean: directions below it are noise of float16


class TunedHalf(nn.Module):
    """`z = (G x - m) / s W + (G x - m) / s T A + b`, then the hub's frozen cloud half.

    Attributes:
        added: A, `[d_s, r]`, from zero.
        shift: b, `[r]`, from the closed form's.
        grid: G, `[N, N_source]`; None where grids are equal.
    """

    def __init__(
        self, half: FittedHalf, encoder: Encoder, cloud: Map, x: npt.NDArray[np.floating]
    ) -> None:
        """Start from a closed form.

        Args:
            half: the closed form.
            encoder: made of it; gives grid, centre and steps.
            cloud: the hub's map.
            x: the small model's states on the hub's grid, `[n, N, d_s]`.
        """
        super().__init__()
        flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
        mean = flat.mean(axis=0)
        normal = (flat - mean) / half.x_scale
        values, vectors = np.linalg.eigh(normal.T @ normal / len(normal))
        floor = max(_LEAST_VARIANCE, half.weight) * values.mean()
        whiten = vectors / np.sqrt(np.maximum(values, 0) + floor)
        shift = ((mean - half.x_mean) / half.x_scale) @ half.projection
        self.cloud = [cloud]  # in a list, so its weights are neither trained nor stored
        for name, array in (
            ("mean", mean),
            ("scale", half.x_scale),
            ("base", half.projection),
            ("whiten", whiten),
            ("centre", encoder.centre),
        ):
            self.register_buffer(name, torch.from_numpy(np.asarray(array, np.float32).copy()))
        self.added = nn.Parameter(torch.zeros_like(self.base))
        self.shift = nn.Parameter(torch.from_numpy(shift.astype(np.float32)))
        self.grid: nn.Parameter | None = None
        if encoder.regrid is not None:
            self.grid = nn.Parameter(torch.from_numpy(encoder.regrid.weights.copy()))
        steps = torch.from_numpy(encoder.steps[FINEST].copy())
        self.rounding = Rounding(steps, torch.zeros(0))

    mean: Tensor
    scale: Tensor
    base: Tensor
    whiten: Tensor
    centre: Tensor

    def latents(self, x: Tensor) -> Tensor:
        """Latents `[B, N, r]` of the small model's states on its own grid."""
        placed = x if self.grid is None else self.grid @ x
        normal = (placed - self.mean) / self.scale
        made: Tensor = normal @ (self.base + self.whiten @ self.added) + self.shift
        return made

    def travel(self, x: Tensor, way: Way = WHOLE) -> tuple[Tensor, Tensor]:
        """As `Trainable.travel`, through the hub's cloud half."""
        latents, cost = self.latents(x), x.new_zeros(())
        cloud = self.cloud[0]
        if way.scale:
            latents, levels = self.rounding.rounded(latents, self.centre, way)
            cost = bits(levels)
        return cloud.states(cloud.cloud(latents)), cost

    def predict(self, x: Tensor) -> Tensor:
        """Z-scored target states `[B, M, d_r]`."""
        made: Tensor = self.cloud[0].cloud(self.latents(x))
        return made

    @property
    def y_stats(self) -> tuple[Tensor, Tensor]:
        """Of the hub's map."""
        return self.cloud[0].y_stats

    def penalty(self) -> Tensor:
        """No extra loss term: zero."""
        return torch.zeros(())

    def groups(self) -> list[dict[str, Any]]:
        """A and b; the grid's weights at a third of their rate. Steps stay the hub's."""
        made: list[dict[str, Any]] = [{"params": [self.added, self.shift], "scale": 1.0}]
        if self.grid is not None:
            made.append({"params": [self.grid], "scale": _GRID_RATE})
        return made

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What is trained."""
        del recurse
        return (parameter for group in self.groups() for parameter in group["params"])

    def result(self, start: FittedHalf) -> tuple[FittedHalf, Floats | None]:
        """The tuned edge half as one matrix, and the weights between the grids."""
        with torch.no_grad():
            matrix = (self.base + self.whiten @ self.added).double().numpy()
            shift = self.shift.double().numpy()
            mean = self.mean.double().numpy()
            weights = None if self.grid is None else self.grid.numpy().astype(np.float32)
        x_mean = folded(mean, start.x_scale, matrix, shift)
        made = FittedHalf(
            x_mean,
            start.x_scale,
            matrix.astype(np.float32),
            start.weight,
            start.explained,
            start.spread,
        )
        return made, weights


def hub_map(weights: bytes, sent: KVLayout, target: KVLayout) -> Map:
    """The hub's map, frozen; only its cloud half counts.

    Args:
        weights: the hub's `cloud.safetensors`.
        sent: a layout with the hub's grid.
        target: the large model's.
    """
    made = maps.load(weights, sent if maps.is_cloud_half(weights) else None, target)
    made.requires_grad_(False)
    return made.eval()
