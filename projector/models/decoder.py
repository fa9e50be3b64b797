"""The text decoder inside a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protos.layout import KVLayout


def decoder_of(model: Any) -> Any:
    """The text decoder (layers + rotary embedding, no head) inside an image-text-to-text model."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "config") else model.base_model  # a head with that name


def attention_mask(decoder: Any, seen: Tensor) -> Tensor:
    """A 4-D attention mask in the decoder's own form; decoders pass 4-D masks on unchanged.

    Args:
        decoder: from `decoder_of`.
        seen: bool `[batch, 1, queries, keys]`, true if a query sees a key; each query sees a key.

    Returns:
        `seen` itself for SDPA. For eager attention, which adds the mask to the logits: 0 where
        seen and the lowest finite number elsewhere, in the decoder's dtype.
    """
    if decoder.config._attn_implementation != "eager":
        return seen
    dtype = decoder.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )


def head_dim_of(text_config: Any) -> int:
    """Channels of one attention head."""
    given = getattr(text_config, "head_dim", None)
    return int(given or text_config.hidden_size // text_config.num_attention_heads)


def key_norm_weights(decoder: Any, layout: KVLayout) -> Tensor | None:
    """The weights of the key norm (QK norm), per layer and channel.

    Args:
        decoder: from `decoder_of`.
        layout: of its cache.

    Returns:
        `[layers, head_dim]` on the CPU; None if keys are not normalised per head.
    """
    if not layout.qk_norm:
        return None
    norms: list[Any] = [getattr(layer.self_attn, "k_norm", None) for layer in decoder.layers]
    if any(getattr(getattr(n, "weight", None), "shape", None) != (layout.head_dim,) for n in norms):
        return None
    with torch.no_grad():  # ones have a root mean square of 1, so the norm returns its weights
        ones = (torch.ones_like(norm.weight) for norm in norms)
        each = [norm(one).float() for norm, one in zip(norms, ones, strict=True)]
        return torch.stack(each).cpu()
