"""Inject: projected keys and values become scenes in the large model's own cache.

`hold` copies them into the engine's pages, in the model's dtype and on its device. `behind_prefix`
puts scenes that are asked about behind the model's own prefix. The map has rotated the keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cloud_server.engine.scenes import Scene, SceneMemory
from cloud_server.engine.work import Work
from projector.models.frozen import FrozenModel
from projector.models.slab import Part


def hold(scenes: SceneMemory, group: Sequence[Work], keys: Tensor, values: Tensor) -> None:
    """Hold the scenes of a group of frames; each `Work.scene` says where.

    Args:
        scenes: where they are held.
        group: the frames.
        keys: rotated, `[layers, group, kv_heads, N, head_dim]`.
        values: as the keys.
    """
    with torch.inference_mode():
        for index, work in enumerate(group):
            held = slice(work.tokens or None)
            work.scene = scenes.put(
                work.job.scene if work.job.hold else None,
                keys[:, index, :, held],
                values[:, index, :, held],
                use=bool(work.job.question),
                owner=work.job.owner,
            )


def behind_prefix(
    model: FrozenModel, scenes: SceneMemory, group: Sequence[Scene]
) -> list[list[Part]]:
    """The context of each scene: the model's prefix, then the scene. Nothing is copied."""
    prefix = prefix_of(model)
    return [[prefix, scenes.read(scene)] for scene in group]


def prefix_of(model: FrozenModel) -> Part:
    """The model's own cache of the tokens before the picture; computed once."""
    keys, values = zip(*model.constant_prefix(), strict=True)
    return torch.cat(keys), torch.cat(values)
