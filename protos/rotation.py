"""Rotary embeddings of keys, in NumPy: applied and undone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protos.errors import FrameMalformedError
from protos.layout import Floats, LayeredRope, RopeSpec


def rotate(keys: npt.ArrayLike, rope: RopeSpec | LayeredRope, positions: npt.ArrayLike) -> Floats:
    """Apply rotary embeddings (RoFormer, arXiv:2104.09864, eq. 34).

    Args:
        keys: [..., T, head_dim], or [layers, kv_heads, T, head_dim] for rotations that differ by
            layer; dimensions from `rope.rotary_dim` on are left alone.
        rope: The model's rotation.
        positions: Integers, [T].

    Returns:
        float32, the shape of `keys`.

    Raises:
        FrameMalformedError: The shapes do not fit.
    """
    return _turn(keys, rope, rope.cos_sin(positions))


def unrotate(keys: npt.ArrayLike, rope: RopeSpec | LayeredRope, positions: npt.ArrayLike) -> Floats:
    """Undo `rotate`; same arguments, same result type."""
    return _turn(keys, rope, rope.inverse(positions))


def _turn(
    keys: npt.ArrayLike, rope: RopeSpec | LayeredRope, tables: tuple[Floats, Floats]
) -> Floats:
    x = np.asarray(keys, dtype=np.float32)
    cos, sin = tables
    layered = cos.ndim > 2
    if (
        x.ndim < cos.ndim
        or x.shape[-2] != cos.shape[-2]
        or x.shape[-1] < rope.rotary_dim
        or (layered and (x.ndim != cos.ndim or len(x) != len(cos)))
    ):
        raise FrameMalformedError(
            f"cannot rotate keys {x.shape} at {cos.shape[-2]} positions over {rope.rotary_dim} "
            f"dimensions: expected [{f'{len(cos)}, kv_heads' if layered else '...'}, "
            f"{cos.shape[-2]}, >= {rope.rotary_dim}]"
        )
    head = x[..., : rope.rotary_dim]
    turned = np.empty_like(head)
    if rope.interleaved:
        turned[..., 0::2], turned[..., 1::2] = -head[..., 1::2], head[..., 0::2]
    else:
        half = rope.rotary_dim // 2
        turned[..., :half], turned[..., half:] = -head[..., half:], head[..., :half]
    out: Floats = x.copy()
    out[..., : rope.rotary_dim] = head * cos + turned * sin
    return out
