"""The text decoder inside a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from protos.layout import KVLayout


def decoder_of(model: Any) -> Any:
    """The text decoder (layers + rotary embedding, no head) inside an image-text-to-text model."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "config") else model.base_model  # a head of that name


def attention_mask(decoder: Any, seen: Tensor) -> Tensor:
    """A 4-D mask in the form that the decoder's attention takes; it hands 4-D masks on as they are.

    Args:
        decoder: of `decoder_of`.
        seen: bool `[batch, 1, queries, keys]`, true where a query sees a key; each query sees one.

    Returns:
        `seen` itself for SDPA. Eager attention adds its mask to the logits, so there it is zero
        where seen and the least finite number elsewhere, in the decoder's dtype.
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
    """What each channel of a head's keys is multiplied by after they were normalised.

    Args:
        decoder: as `decoder_of` gives it.
        layout: of its cache.

    Returns:
        `[layers, head_dim]` on the CPU; None where keys are not normalised head by head.
    """
    if not layout.qk_norm:
        return None
    norms: list[Any] = [getattr(layer.self_attn, "k_norm", None) for layer in decoder.layers]
    if any(getattr(getattr(n, "weight", None), "shape", None) != (layout.head_dim,) for n in norms):
        return None
    with torch.no_grad():  # ones have a root mean square of 1: what comes out is the weights
        ones = (torch.ones_like(norm.weight) for norm in norms)
        each = [norm(one).float() for norm, one in zip(norms, ones, strict=True)]
        return torch.stack(each).cpu()
