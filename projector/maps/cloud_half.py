"""Reads cloud halves in the earlier form, from before all maps had one form.

Such a blob holds `up`, `empty`, the target's statistics and perhaps a mixing block, but not the
edge half, which is the bundle's encoder. The map that is read computes the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from projector.maps.base import Family, Floats, Map
from projector.maps.factors import Factors
from projector.maps.mix import Mix
from projector.maps.rounding import Rounding
from projector.models.foreign import in_words
from protos.errors import BundleFormatError, FitError
from protos.layout import KVLayout

CLOUD_HALF = "cloud_half"
"""Metadata key of such a blob."""


@dataclass(frozen=True)
class CloudConfig:
    """The configuration in such a blob.

    Attributes:
        rank: numbers per token that travel.
        layers: layers of the target.
        kv_heads: key/value heads of the target.
        head_dim: channels per head of the target.
        tokens: image tokens of the target's grid, M.
        rotary_dim: channels of a head that RoPE turns; 0 for all.
        interleaved: the target's RoPE pairs neighbouring channels.
        mix_width: width of the mixing block; 0: no block.
        mix_depth: its layers.
        mix_heads: attention heads of each layer.
        mix_expand: width of their MLPs, in multiples of `mix_width`; always 2.
        inner: numbers per token after mixing; 0 means `rank`.
        tokens_in: image tokens of the source's grid, N; 0 means as many as the target's.
    """

    rank: int
    layers: int
    kv_heads: int
    head_dim: int
    tokens: int
    rotary_dim: int
    interleaved: bool
    mix_width: int
    mix_depth: int
    mix_heads: int
    mix_expand: int
    inner: int
    tokens_in: int = 0

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> CloudConfig:
        """Read the JSON form.

        Raises:
            ValueError: unknown or missing fields, or values of the wrong type.
        """
        known = {field.name for field in fields(cls)}
        if set(raw) | {"tokens_in"} != known:
            raise ValueError(f"configuration fields are {sorted(raw)}, expected {sorted(known)}")
        for name, value in raw.items():
            if type(value) is not (bool if name == "interleaved" else int):
                raise ValueError(f"field '{name}' has the value {value!r}")
        return cls(**raw)

    @property
    def family(self) -> Family:
        """The current family that computes the same."""
        inside = Factors(r=self.inner or self.rank, travels=self.rank)
        if not self.mix_width:
            return inside
        return Mix(
            inner=Factors.name,
            config=asdict(inside),
            width=self.mix_width,
            depth=self.mix_depth,
            heads=self.mix_heads,
            order="target",
        )

    def require(self, source: KVLayout, target: KVLayout) -> None:
        """Refuse a blob whose shapes differ from a bundle's layouts.

        Raises:
            BundleFormatError: the message names both.
        """
        for what, theirs, ours in (
            (
                "(layers, heads, head_dim)",
                (self.layers, self.kv_heads, self.head_dim),
                (target.layers, target.kv_heads, target.head_dim),
            ),
            (
                "(tokens in, tokens out, rotary_dim, interleaved)",
                (self.tokens_in or self.tokens, self.tokens, self._turned, self.interleaved),
                (source.tokens, target.tokens, target.rope.rotary_dim, target.rope.interleaved),
            ),
        ):
            if theirs != ours:
                raise BundleFormatError(f"the cloud half is for {what} {theirs}, not for {ours}")
        if self.mix_expand != 2 or (self.inner > self.rank and not self.mix_width):
            raise BundleFormatError(f"no version wrote a cloud half of the shape {self}")

    @property
    def _turned(self) -> int:
        return self.rotary_dim or self.head_dim


def read_cloud_half(blob: bytes, source: KVLayout, target: KVLayout) -> Map:
    """The map that computes what a cloud half computes; its edge half is zero.

    Args:
        blob: the bundle's `cloud.safetensors`.
        source: the bundle's source layout.
        target: the bundle's target layout.

    Raises:
        BundleFormatError: not such a blob, or its tensors do not fit its configuration, or its
            shapes do not fit the layouts.
    """
    try:
        tensors: dict[str, Tensor] = load_tensors(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        config = CloudConfig.of(json.loads(header["__metadata__"][CLOUD_HALF]))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleFormatError(f"not a cloud half: {in_words(error)}") from error
    config.require(source, target)
    try:
        made = config.family.make(source, target)
        between = tensors.pop("between", None)
        if between is not None:
            made.to_grid = between
        made.rounding = Rounding.blank(made.rank, source.tokens, source.state_dim)
        kept = {
            name: tensor
            for name, tensor in made.state_dict().items()
            if name.startswith(("x_", "inner.", "rounding.")) or name == "inward"
        }
        made.load_state_dict(kept | _renamed(tensors, config))
    except (FitError, RuntimeError, KeyError) as error:
        raise BundleFormatError(
            f"the cloud half's tensors do not fit its configuration: {in_words(error)}"
        ) from error
    return made.eval()


def take_edge_half(made: Map, mean: Floats, scale: Floats, projection: Floats) -> None:
    """Complete a map from `read_cloud_half` with the edge half from the bundle's encoder.

    Args:
        made: changed in place.
        mean: `[d_s]`.
        scale: `[d_s]`.
        projection: `[d_s, r]`, on z-scored states.
    """
    inward = "inner.inward" if isinstance(made.family, Mix) else "inward"
    with torch.no_grad():
        made.x_mean.copy_(torch.from_numpy(mean))
        made.x_scale.copy_(torch.from_numpy(scale))
        made.get_parameter(inward).copy_(torch.from_numpy(projection))


def _renamed(tensors: Mapping[str, Tensor], config: CloudConfig) -> dict[str, Tensor]:
    """The blob's tensors under their current names."""
    mixed = bool(config.mix_width)
    found = {
        "y_mean": tensors["y_mean"],
        "y_scale": tensors["y_scale"],
        "rounding.empty": tensors["empty"],
        ("inner.onward" if mixed else "onward"): tensors["up"],
    }
    names = {"mix.position": "place_target", "mix.position_in": "place_source"}
    for name, tensor in tensors.items():
        if not name.startswith("mix."):
            continue
        if ".qkv." in name:
            query, key_value = tensor.tensor_split([config.mix_width])
            whole = name.removeprefix("mix.")
            found[whole.replace("qkv", "query")] = query
            found[whole.replace("qkv", "key_value")] = key_value
            continue
        new = names.get(name, name.removeprefix("mix."))
        found[new.replace("norm_attention", "norm_query")] = tensor
    return found
