"""Project: turn the latents of a group of frames into the large model's keys and values.

The bundle's backend does it in one call: mix tokens, U·s, rotate the keys to their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector.codec.deltas import Held
from projector.serving.backends import Backend


class Projected(NamedTuple):
    """A group of frames in the large model's cache format.

    Attributes:
        finite: for each frame, whether its projected cache is finite; the other frames are left
            out of `keys` and `values`.
        keys: rotated, `[layers, finite frames, kv_heads, N, head_dim]`.
        values: as the keys.
    """

    finite: list[bool]
    keys: Tensor
    values: Tensor


def project(
    backend: Backend, frames: Sequence[Held], positions: npt.NDArray[np.int64]
) -> Projected:
    """Project a group of frames of one cloud half; texts are padded to the longest.

    Args:
        backend: runs the cloud half; the frames may be of several edge models of one hub.
        frames: latents `[tokens, rank]` and which tokens are known `[tokens]`.
        positions: where the image (or text) tokens stand in the large model's prompt, `[N]`.
    """
    shape = (len(frames), backend.tokens)
    latents = np.zeros((*shape, backend.rank), dtype=np.float32)
    known = np.zeros(shape, dtype=np.bool_)
    for row, held in enumerate(frames):
        tokens = len(held.latents)
        latents[row, :tokens], known[row, :tokens] = held.latents, held.kept
    keys, values = backend.project(latents, known, positions)
    finite = [
        bool(np.isfinite(keys[:, row]).all() and np.isfinite(values[:, row]).all())
        for row in range(len(frames))
    ]
    if not all(finite):
        keys, values = keys[:, finite], values[:, finite]
    return Projected(finite, torch.from_numpy(keys), torch.from_numpy(values))
