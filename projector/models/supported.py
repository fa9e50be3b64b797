"""Refuses model configurations that a cache layout cannot describe."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from projector.models.rope import parameters_by_layer_type
from protos.errors import UnsupportedModelError

OTHER_MODEL = "use a model whose decoder has plain RoPE and full causal attention"
"""What to do when the product cannot use a model."""

_PLAIN_LAYERS = {"full_attention", "sliding_attention"}
_LINEAR_LAYERS = {"linear_attention", "mamba", "recurrent", "conv", "ssm", "hybrid"}
# families that rotate keys only in sliding-window layers; the second set, only if there is a window
_ROPE_WHERE_SLIDING = {"afmoe", "cohere2", "cohere2_moe", "flint"}
_ROPE_WHERE_SLIDING_IF_ANY = {"exaone4", "exaone_moe", "kolibri1"}
_SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size")
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


def refuse_unsupported(config: Any, windows: bool = False) -> None:
    """Refuse whatever `KVLayout` cannot describe, and name it.

    Args:
        config: configuration of the whole model, not only of its text part.
        windows: accept sliding windows (the caller keeps them wider than any context).

    Raises:
        UnsupportedModelError: multimodal RoPE; a bidirectional prefix; an encoder-decoder or
            cross-attention; attention in chunks, or sliding windows unless accepted; MLA; linear
            attention or none; layers that differ, lack RoPE or share another layer's cache; RoPE
            frequencies that depend on the length.
    """
    text = config.get_text_config(decoder=True)
    kind = config.model_type
    rope = dict(getattr(text, "rope_parameters", None) or {})
    layer_types = list(getattr(text, "layer_types", None) or [])

    def refuse(feature: str) -> NoReturn:
        raise UnsupportedModelError(
            f"'{kind}' uses {feature}, which a cache layout cannot describe yet; {OTHER_MODEL}"
        )

    if kind in {"paligemma", "colpali"} or getattr(text, "use_bidirectional_attention", None) in (
        True,
        "all",
    ):
        refuse("a bidirectional prefix (the picture's cache would depend on the question)")
    qwen_vl = kind.startswith("qwen") and "_vl" in kind
    if (
        "mrope_section" in rope
        or rope.get("rope_type") == "mrope"
        or qwen_vl
        or _places_by_picture(config)
    ):
        refuse("multimodal RoPE (three position axes)")
    if getattr(config, "is_encoder_decoder", False):
        refuse("an encoder-decoder")
    if getattr(text, "cross_attention_layers", None):
        refuse("cross-attention to the picture (the picture is not in the cache)")
    linear = sorted(set(layer_types) & _LINEAR_LAYERS)
    if linear:
        refuse(f"linear attention (layers of type {', '.join(linear)})")
    try:
        lora_rank = getattr(text, "kv_lora_rank", None)
        sizes = [getattr(text, name, None) for name in _SIZES]
    except RuntimeError:  # transformers has no single answer: layers differ
        refuse("layers that differ from each other in their heads")
    if lora_rank:
        refuse("MLA (a compressed cache)")
    if not all(sizes):
        refuse("a decoder without attention heads (a recurrent state, or several decoders)")
    window = getattr(text, "sliding_window", None)
    if "chunked_attention" in layer_types or (slides(text) and window is None):
        refuse("attention in chunks")
    others = sorted(set(layer_types) - _PLAIN_LAYERS)
    if others:
        refuse(f"layers of type {', '.join(others)}")
    if slides(text) and not windows:
        refuse(f"active sliding windows (of {window} tokens)")
    if any(not used for used in getattr(text, "no_rope_layers", None) or []):
        refuse("layers without RoPE")
    family = getattr(text, "model_type", None)
    bare = sorted(set(layer_types) - {"sliding_attention"})
    if bare and (
        family in _ROPE_WHERE_SLIDING
        or (family in _ROPE_WHERE_SLIDING_IF_ANY and window is not None)
    ):
        refuse(f"layers without RoPE (those of type {', '.join(bare)})")
    if getattr(text, "num_kv_shared_layers", 0):
        refuse("layers that share another layer's cache")
    for one in parameters_by_layer_type(text).values():
        way = one.get("rope_type", "default")
        if not isinstance(way, str):
            refuse(f"RoPE whose type is not a name ({way!r})")
        if way not in _STATIC_ROPE:
            refuse(f"'{way}' RoPE (frequencies that may depend on the length)")


def _places_by_picture(config: Any) -> bool:
    """Whether the model's class computes positions from the picture's shape (M-RoPE)."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    cls = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if cls is None:
        return False
    module = sys.modules[cls.__module__]
    return any(hasattr(one, "get_rope_index") for one in vars(module).values())


def slides(text: Any) -> bool:
    """Whether some layer has a window that a context could outgrow."""
    layer_types = set(getattr(text, "layer_types", None) or [])
    window = getattr(text, "sliding_window", None)
    slides = bool(layer_types & {"sliding_attention", "chunked_attention"}) or (
        not layer_types and window is not None and getattr(text, "use_sliding_window", True)
    )
    length = getattr(text, "max_position_embeddings", None)
    return slides and (window is None or length is None or window < length)
