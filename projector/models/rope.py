"""Rotary embeddings: measures a model's own, applies them to keys and removes them."""

from __future__ import annotations

import sys
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector.models.decoder import decoder_of, head_dim_of
from protos.errors import UnsupportedModelError
from protos.layout import LayeredRope, RopeSpec


def parameters_by_layer_type(text: Any) -> dict[str | None, dict[str, Any]]:
    """RoPE parameters per layer type, in layer order; under `None` if all layers share them."""
    rope = dict(getattr(text, "rope_parameters", None) or {})
    kinds = dict.fromkeys(getattr(text, "layer_types", None) or [])
    if not kinds or not all(isinstance(rope.get(kind), dict | NoneType) for kind in kinds):
        return {None: rope}
    if not any(isinstance(value, dict) for value in rope.values()):
        return {None: rope}
    return {kind: dict(rope.get(kind) or {}) for kind in kinds}


def ropes_of(model: Any) -> tuple[list[RopeSpec], tuple[int, ...]]:
    """The model's different rotations, and each layer's index into them (none if one is used).

    Raises:
        UnsupportedModelError: as `rope_of`.
    """
    text = model.config.get_text_config(decoder=True)
    kinds = {kind: rope_of(model, kind) for kind in parameters_by_layer_type(text)}
    specs = list(dict.fromkeys(kinds.values()))
    if len(specs) == 1:
        return specs, ()
    return specs, tuple(specs.index(kinds[kind]) for kind in text.layer_types)


def rope_of(model: Any, kind: str | None = None) -> RopeSpec:
    """Measure a rotary embedding: the model's own frequencies, checked by its own rotation.

    Args:
        model: a loaded model.
        kind: the layer type, for decoders that rotate differently by type.

    Raises:
        UnsupportedModelError: the decoder has no rotary embedding, or rotates in a way that is
            neither half-split nor interleaved.
    """
    if hasattr(getattr(model, "base_model", None), "get_rope_index"):
        raise UnsupportedModelError(
            f"'{model.config.model_type}' uses multimodal RoPE (its positions depend on the "
            "picture's shape), which a cache layout cannot describe yet"
        )
    decoder = decoder_of(model)
    rotary = getattr(decoder, "rotary_emb", None)
    apply = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
    prefix = "" if kind is None else f"{kind}_"
    inv_freq = getattr(rotary, f"{prefix}inv_freq", None)
    if rotary is None or apply is None or not isinstance(inv_freq, Tensor):
        raise UnsupportedModelError(
            f"the decoder {type(decoder).__name__} has no plain rotary embedding; "
            "a cache without RoPE cannot be moved to other positions"
        )
    text = model.config.get_text_config(decoder=True)
    parameters = parameters_by_layer_type(text)[kind]
    frequencies = inv_freq.detach().double().cpu()
    rotary_dim = 2 * len(frequencies)
    head_dim = head_dim_of(text)
    factor = float(getattr(rotary, f"{prefix}attention_scaling", 1.0))
    key = torch.randn(1, 1, 3, head_dim, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[1, 7, 40]])
    with torch.no_grad():
        where = (key.to(inv_freq.device), positions.to(inv_freq.device))
        cos, sin = rotary(*where) if kind is None else rotary(*where, kind)
        try:
            _, rotated = apply(key.to(cos.device), key.to(cos.device), cos, sin)
        except RuntimeError:  # it takes only the rotated channels; its caller keeps the rest
            part = key[..., :rotary_dim].to(cos.device)
            rotated = torch.cat((apply(part, part, cos, sin)[1].cpu(), key[..., rotary_dim:]), -1)
    for interleaved in (False, True):
        spec = RopeSpec(
            theta=float(parameters.get("rope_theta", 0.0)),
            rotary_dim=rotary_dim,
            interleaved=interleaved,
            scaling=str(parameters.get("rope_type", "default")),
            attention_factor=factor,
            inv_freq=tuple(frequencies.tolist()),
        )
        ours = rotate(key, spec, positions[0].numpy())
        if torch.allclose(ours, rotated.float().cpu(), atol=1e-4):
            return spec
    raise UnsupportedModelError(
        f"the decoder {type(decoder).__name__} rotates keys in a way that is neither half-split "
        "nor interleaved RoPE; its cache cannot be un-rotated"
    )


def cos_sin(
    rope: RopeSpec | LayeredRope, positions: npt.NDArray[np.int64], like: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The rotation's `cos_sin` as float32 tensors on the device of `like`."""
    cos, sin = rope.cos_sin(positions)
    device = like.device if like is not None else torch.device("cpu")
    return torch.from_numpy(cos).to(device), torch.from_numpy(sin).to(device)


def apply_rotation(keys: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn the first `cos.shape[-1]` channels of `keys`; differentiable.

    Args:
        keys: `[..., tokens, head_dim]`; with tables that differ by layer,
            `[layers, (batch,) kv_heads, tokens, head_dim]`.
        cos: `[tokens, rotary_dim]`, or `[layers, 1, tokens, rotary_dim]`.
        sin: of the same shape.
        interleaved: whether a pair is two neighbouring channels.
    """
    if cos.ndim > 2 and keys.ndim > cos.ndim:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    width = cos.shape[-1]
    turned, rest = keys[..., :width], keys[..., width:]
    if interleaved:
        even, odd = turned[..., 0::2], turned[..., 1::2]
        half = torch.stack((-odd, even), dim=-1).flatten(-2)
    else:
        half = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), dim=-1)
    out = turned * cos + half * sin
    return out if width == keys.shape[-1] else torch.cat((out, rest), dim=-1)


def rotate(keys: Tensor, rope: RopeSpec | LayeredRope, positions: npt.NDArray[np.int64]) -> Tensor:
    """Apply RoPE to un-rotated `keys` (shapes as in `apply_rotation`), in float32."""
    cos, sin = cos_sin(rope, positions, keys)
    return apply_rotation(keys.float(), cos, sin, rope.interleaved)


def unrotate(
    keys: Tensor, rope: RopeSpec | LayeredRope, positions: npt.NDArray[np.int64]
) -> Tensor:
    """Remove RoPE from `keys` (shapes as in `apply_rotation`), in float32; differentiable."""
    cos, sin = (torch.from_numpy(t).to(keys.device) for t in rope.inverse(positions))
    return apply_rotation(keys.float(), cos, sin, rope.interleaved)
