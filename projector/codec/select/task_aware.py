"""Selection by how much dropping a token costs the large model, as learnt in calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select.base import Floats, Scores, Selector
from protos.state import KVState


@dataclass(frozen=True, eq=False)
class TaskAware(Selector):
    """The rise of the large model's loss when a token is dropped, as learnt in calibration.

    The loss is a sum over dropped tokens: the weighted square of the difference between a token's
    latents and those that stand in for it. (A diagonal second-order model of the loss, as in LeCun
    et al. 1989, in latents instead of weights.)

    Attributes:
        normal_mean: `[d_s]` of the states.
        normal_scale: `[d_s]`.
        projection: `[d_s, r]` on normalised states.
        empty: the latents that stand in for a dropped token, `[N, r]`.
        weights: weight of each latent's square, `[r]`, not negative.
    """

    normal_mean: Floats
    normal_scale: Floats
    projection: Floats
    empty: Floats
    weights: Floats
    name: ClassVar[str] = "task_aware"

    def score(self, state: KVState) -> Scores:
        """The loss that dropping each token adds, in nats."""
        latents = (state.flat() - self.normal_mean) / self.normal_scale @ self.projection
        lost: Scores = np.square(latents - self.empty) @ self.weights
        return lost
