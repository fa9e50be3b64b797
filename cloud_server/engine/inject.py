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
from projector.models.cache import LayerCache
from projector.models.frozen import FrozenModel


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
            )


def behind_prefix(
    model: FrozenModel, scenes: SceneMemory, group: Sequence[Scene]
) -> list[LayerCache]:
    """The model's prefix, followed by scenes of equal length.

    Returns:
        Per layer, keys and values `[group, kv_heads, prefix + N, head_dim]`.
    """
    with torch.inference_mode():
        keys, values = zip(*map(scenes.read, group), strict=True)
        return model.scene_cache(torch.stack(keys, dim=1), torch.stack(values, dim=1))
