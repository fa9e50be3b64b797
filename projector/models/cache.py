"""A model's cache on one side, `KVLayout` and `KVState` on the other.

Knows: transformers configs, rotary embeddings and cache objects (nothing else in the product
touches a transformers cache). Does not know: prompts, pictures, latents, the wire.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protos.errors import ModelError, UnsupportedModelError
from protos.layout import KVLayout, LayeredRope, RopeSpec
from protos.state import KVState

LayerCache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `[batch, kv_heads, tokens, head_dim]`, keys rotated."""

OTHER_MODEL = "use a model whose decoder has plain RoPE and full causal attention"
"""What to do about a model that the product cannot use."""

_PLAIN_LAYERS = {"full_attention", "sliding_attention"}
_LINEAR_LAYERS = {"linear_attention", "mamba", "recurrent", "conv", "ssm", "hybrid"}
# families that rotate keys in their sliding layers only; the second set, only if it has a window
_ROPE_WHERE_SLIDING = {"afmoe", "cohere2", "cohere2_moe", "flint"}
_ROPE_WHERE_SLIDING_IF_ANY = {"exaone4", "exaone_moe", "kolibri1"}
_SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size")
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_SETTINGS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
_NO_SETTINGS = {
    "generation_config.json",  # how answers are sampled
    "training.json",  # how reference models were trained
    *("adapter_model.json", "trainer_state.json", "all_results.json", "train_results.json"),
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)


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


def refuse_unsupported(config: Any, windows: bool = False) -> None:
    """Refuse, by name, what `KVLayout` cannot describe.

    Args:
        config: the configuration of the whole model (not only its text part).
        windows: whether sliding windows are taken, to be kept wider than any context.

    Raises:
        UnsupportedModelError: multimodal RoPE, a bidirectional prefix, an encoder-decoder or
            cross-attention, chunked or (unless taken) sliding windows, MLA, linear attention or
            none, layers that differ, without RoPE or sharing another layer's cache, frequencies
            that depend on the length.
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
    except RuntimeError:  # transformers has no one answer: each layer has its own
        refuse("layers that differ from each other in their heads")
    if lora_rank:
        refuse("MLA (a compressed cache)")
    if not all(sizes):
        refuse("a decoder without attention heads (a recurrent state, or several decoders)")
    window = getattr(text, "sliding_window", None)
    if "chunked_attention" in layer_types or (_slides(text) and window is None):
        refuse("attention in chunks")
    others = sorted(set(layer_types) - _PLAIN_LAYERS)
    if others:
        refuse(f"layers of type {', '.join(others)}")
    if _slides(text) and not windows:
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
    for one in _ropes(text).values():
        way = one.get("rope_type", "default")
        if not isinstance(way, str):
            refuse(f"RoPE of a type that is no name ({way!r})")
        if way not in _STATIC_ROPE:
            refuse(f"'{way}' RoPE (frequencies that may depend on the length)")


def _places_by_picture(config: Any) -> bool:
    """Whether the model's class computes positions from the picture's shape."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    cls = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if cls is None:
        return False
    module = sys.modules[cls.__module__]
    return any(hasattr(one, "get_rope_index") for one in vars(module).values())


def _slides(text: Any) -> bool:
    """Whether some layer has a window that a context could outgrow."""
    layer_types = set(getattr(text, "layer_types", None) or [])
    window = getattr(text, "sliding_window", None)
    slides = bool(layer_types & {"sliding_attention", "chunked_attention"}) or (
        not layer_types and window is not None and getattr(text, "use_sliding_window", True)
    )
    length = getattr(text, "max_position_embeddings", None)
    return slides and (window is None or length is None or window < length)


def windows_of(text: Any) -> tuple[int, ...]:
    """How many tokens back each layer sees, 0 for all; empty where no window is ever reached."""
    if not _slides(text):
        return ()
    types = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(int(text.sliding_window) if t == "sliding_attention" else 0 for t in types)


def _ropes(text: Any) -> dict[str | None, dict[str, Any]]:
    """RoPE parameters by type of layer, in the order of the layers; under `None` if all share."""
    rope = dict(getattr(text, "rope_parameters", None) or {})
    kinds = dict.fromkeys(getattr(text, "layer_types", None) or [])
    if not kinds or not all(isinstance(rope.get(kind), dict | NoneType) for kind in kinds):
        return {None: rope}
    if not any(isinstance(value, dict) for value in rope.values()):
        return {None: rope}
    return {kind: dict(rope.get(kind) or {}) for kind in kinds}


def ropes_of(model: Any) -> tuple[list[RopeSpec], tuple[int, ...]]:
    """The model's different rotations, and which of them each layer uses; none if all use one.

    Raises:
        UnsupportedModelError: as `rope_of`.
    """
    text = model.config.get_text_config(decoder=True)
    kinds = {kind: rope_of(model, kind) for kind in _ropes(text)}
    specs = list(dict.fromkeys(kinds.values()))
    if len(specs) == 1:
        return specs, ()
    return specs, tuple(specs.index(kinds[kind]) for kind in text.layer_types)


def rope_of(model: Any, kind: str | None = None) -> RopeSpec:
    """A rotary embedding, as measured: the model's own frequencies, checked by its own rotation.

    Args:
        model: a loaded model.
        kind: the type of layer, for decoders that rotate by type.

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
    parameters = _ropes(text)[kind]
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
        except (
            RuntimeError
        ):  # it wants the rotated channels only, and leaves the rest to its caller
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


def head_dim_of(text_config: Any) -> int:
    """Channels of one attention head."""
    given = getattr(text_config, "head_dim", None)
    return int(given or text_config.hidden_size // text_config.num_attention_heads)


def weights_digest(path: Path) -> str:
    """SHA-256 hex over every safetensors file of a checkpoint, in name order.

    Raises:
        ModelError: the folder holds no safetensors file.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path} holds no .safetensors file: it is not a usable checkpoint")
    return _files_digest(files)


def tokenizer_digest(path: Path) -> str:
    """SHA-256 hex over the files that decide the prompt: tokenizer, template, processor."""
    return _files_digest([Path(path) / n for n in _TOKENIZER_FILES if (Path(path) / n).is_file()])


def settings_digest(path: Path, prompt: Any) -> str:
    """SHA-256 hex over every setting that a cache or the prompt before it depends on.

    The files themselves are digested, whatever they say: which of their fields changes a cache is
    the library's business, and one that does not costs a bundle's re-export at worst.

    Args:
        path: a checkpoint folder.
        prompt: what the model's prompt was found to be, as anything JSON can hold.
    """
    folder = Path(path)
    found = {file for pattern in _SETTINGS for file in folder.glob(pattern)}
    found |= set(folder.glob("additional_chat_templates/*.jinja"))
    files = sorted(file for file in found if file.is_file() and file.name not in _NO_SETTINGS)
    told = json.dumps(prompt, sort_keys=True)
    return hashlib.sha256(f"{_files_digest(files)}\0{told}".encode()).hexdigest()


def _files_digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


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
    """Describe a live model's cache; `refuse_unsupported` has taken its configuration.

    Args:
        model: a loaded model.
        path: the checkpoint folder it was loaded from (its files are digested).
        grid: rows and columns of one picture's tokens; one row of the longest text.
        prompt: as of `settings_digest`.

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
        keys: `[..., tokens, head_dim]`; `[layers, (batch,) kv_heads, tokens, head_dim]` for tables
            that differ by layer.
        cos: `[tokens, rotary_dim]`, or `[layers, 1, tokens, rotary_dim]`.
        sin: likewise.
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
    """Apply RoPE to un-rotated `keys`, as `apply_rotation` takes them, in float32."""
    cos, sin = cos_sin(rope, positions, keys)
    return apply_rotation(keys.float(), cos, sin, rope.interleaved)


def unrotate(
    keys: Tensor, rope: RopeSpec | LayeredRope, positions: npt.NDArray[np.int64]
) -> Tensor:
    """Remove RoPE from `keys`, as `apply_rotation` takes them, in float32; differentiable."""
    cos, sin = (torch.from_numpy(t).to(keys.device) for t in rope.inverse(positions))
    return apply_rotation(keys.float(), cos, sin, rope.interleaved)


def read_cache(cache: Any) -> list[LayerCache]:
    """The tensors of a transformers cache, one pair per layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def new_cache(layers: Sequence[LayerCache] = ()) -> Any:
    """A transformers cache over the given tensors, which it never writes to.

    Built without a config, so that every layer is a plain growing one.
    """
    from transformers import DynamicCache  # here, so that maps may use this module's rotation alone

    return DynamicCache(list(layers)) if layers else DynamicCache()


def to_states(
    keys: Tensor,
    values: Tensor,
    layout: KVLayout,
    positions: npt.NDArray[np.int64],
    attention: Tensor,
) -> list[KVState]:
    """One `KVState` per picture, or per text of as many tokens.

    Args:
        keys: `[layers, batch, kv_heads, tokens, head_dim]`, rotated at `positions`.
        values: likewise.
        layout: the model's layout.
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
    """Put the target's own cache of everything before the picture in front of injected tokens.

    Args:
        prefix: per layer `[1, kv_heads, prefix_tokens, head_dim]`.
        keys: `[layers, batch, kv_heads, tokens, head_dim]`, rotated at the target's positions.
        values: likewise.
    """
    batch = keys.shape[1]
    return [
        (
            torch.cat((pk.expand(batch, -1, -1, -1), k.to(pk.dtype)), dim=2),
            torch.cat((pv.expand(batch, -1, -1, -1), v.to(pv.dtype)), dim=2),
        )
        for (pk, pv), k, v in zip(prefix, keys, values, strict=True)
    ]
