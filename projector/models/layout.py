"""Describes a live model's cache as a `KVLayout`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from projector.models.decoder import decoder_of, head_dim_of
from projector.models.digests import settings_digest, tokenizer_digest, weights_digest
from projector.models.rope import ropes_of
from projector.models.supported import slides
from protos.errors import UnsupportedModelError
from protos.layout import KVLayout


def windows_of(text: Any) -> tuple[int, ...]:
    """How many tokens back each layer sees, 0 for all; empty if no window is ever reached."""
    if not slides(text):
        return ()
    types = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(int(text.sliding_window) if t == "sliding_attention" else 0 for t in types)


def grid_of(tokens: int, path: Path) -> tuple[int, int]:
    """Rows and columns of a square, row-major grid of image tokens.

    Raises:
        UnsupportedModelError: the count is not a square; the message names `path`.
    """
    side = math.isqrt(tokens)
    if side < 1 or side * side != tokens:
        raise UnsupportedModelError(
            f"{path}: one picture becomes {tokens} image tokens, which is not a square grid; turn "
            "off picture splitting, thumbnails and class tokens in the processor's settings, or "
            "use another model"
        )
    return side, side


def layout_of(model: Any, path: str | Path, grid: tuple[int, int], prompt: Any = None) -> KVLayout:
    """Describe a live model's cache. Call `refuse_unsupported` on its configuration first.

    Args:
        model: a loaded model.
        path: the checkpoint folder it was loaded from (its files are digested).
        grid: rows and columns of one picture's tokens; one row of the longest text.
        prompt: as in `settings_digest`.

    Raises:
        UnsupportedModelError: see `rope_of`.
        ModelError: the folder holds no safetensors file.
    """
    text = model.config.get_text_config(decoder=True)
    weights = weights_digest(Path(path))
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    ropes, layer_ropes = ropes_of(model)
    return KVLayout(
        model_id=f"{type(model).__name__}:{weights[:12]}",
        layers=int(text.num_hidden_layers),
        kv_heads=int(heads),
        head_dim=head_dim_of(text),
        rope=ropes[0],
        cache_dtype=str(decoder_of(model).dtype).removeprefix("torch."),
        grid=grid,
        tokenizer_digest=tokenizer_digest(Path(path)),
        weights_digest=weights,
        more_ropes=tuple(ropes[1:]),
        layer_ropes=layer_ropes,
        windows=windows_of(text),
        qk_norm=any(name.endswith("self_attn.k_norm") for name, _ in model.named_modules()),
        settings_digest=settings_digest(Path(path), prompt),
    )
