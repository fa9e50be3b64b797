"""Converts between a transformers cache and `KVState`.

Only `slab.py` touches a transformers cache too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector.models.rope import rotate, unrotate
from protos.layout import KVLayout
from protos.state import KVState

LayerCache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `[batch, kv_heads, tokens, head_dim]`, keys rotated."""


def read_cache(cache: Any) -> list[LayerCache]:
    """The tensors of a transformers cache, one pair per layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def new_cache(layers: Sequence[LayerCache] = ()) -> Any:
    """A transformers cache that starts from the given tensors and never writes to them.

    Built without a config, so every layer simply grows.
    """
    from transformers import DynamicCache  # imported late: maps use only this module's rotation

    return DynamicCache(list(layers)) if layers else DynamicCache()


def to_states(
    keys: Tensor,
    values: Tensor,
    layout: KVLayout,
    positions: npt.NDArray[np.int64],
    attention: Tensor,
) -> list[KVState]:
    """One `KVState` per row of the batch: a picture, or a text.

    Args:
        keys: `[layers, batch, kv_heads, tokens, head_dim]`, rotated at `positions`.
        values: of the same shape.
        layout: of the model.
        positions: `[tokens]`.
        attention: received attention, `[batch, tokens]`.
    """
    plain = unrotate(keys, layout.rotation, positions).cpu().numpy()
    held = values.float().cpu().numpy()
    received = attention.float().cpu().numpy()
    return [
        KVState(
            keys=np.ascontiguousarray(plain[:, b]),
            values=np.ascontiguousarray(held[:, b]),
            positions=positions,
            grid=layout.grid if len(positions) == layout.tokens else (1, len(positions)),
            attention=received[b],
        )
        for b in range(plain.shape[1])
    ]


def from_states(
    states: Sequence[KVState],
    layout: KVLayout,
    positions: npt.NDArray[np.int64],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Keys rotated at `positions`, and values: `[layers, batch, kv_heads, tokens, head_dim]`."""
    keys = torch.from_numpy(np.stack([state.keys for state in states], axis=1)).to(device)
    values = torch.from_numpy(np.stack([state.values for state in states], axis=1)).to(device)
    return rotate(keys, layout.rotation, positions).to(dtype), values.to(dtype)


def scene_layers(prefix: Sequence[LayerCache], keys: Tensor, values: Tensor) -> list[LayerCache]:
    """Prepend the target's own cache of the prefix to the injected tokens, per layer.

    Args:
        prefix: per layer `[1, kv_heads, prefix_tokens, head_dim]`.
        keys: `[layers, batch, kv_heads, tokens, head_dim]`, rotated at the target's positions.
        values: of the same shape.
    """
    batch = keys.shape[1]
    return [
        (
            torch.cat((pk.expand(batch, -1, -1, -1), k.to(pk.dtype)), dim=2),
            torch.cat((pv.expand(batch, -1, -1, -1), v.to(pv.dtype)), dim=2),
        )
        for (pk, pv), k, v in zip(prefix, keys, values, strict=True)
    ]
