"""The cloud half of a low-rank map (W = U S V^T): latents in, the target model's cache out (torch).

Knows: latents, the target's static statistics, RoPE tables. Does not know: models, prompts, how it
was trained. The V^T half runs at the edge (`projector/codec/encoder.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from projector.models.foreign import in_words
from projector.models.rope import apply_rotation
from protos.errors import BundleFormatError, UnsupportedModelError
from protos.layout import KVLayout

MAX_MIX_WIDTH = 256
MAX_MIX_DEPTH = 8


@dataclass(frozen=True)
class Boundaries:
    """Shapes at both ends of a cloud half.

    Attributes:
        tokens_in: image tokens of the source's grid, N.
        tokens_out: of the target's, M.
        rank: numbers per token that travelled.
        rotary_dim: channels that the target's RoPE turns.
        free_tokens: whether any number of tokens may go in (as many come out).
        rotated_layers: layers of the target where their RoPE differs; 0 where one serves all.
    """

    tokens_in: int
    tokens_out: int
    rank: int
    rotary_dim: int
    free_tokens: bool
    rotated_layers: int = 0

    @property
    def table(self) -> tuple[int, ...]:
        """Shape of the cos and sin tables."""
        flat = (self.tokens_out, self.rotary_dim)
        return (self.rotated_layers, 1, *flat) if self.rotated_layers else flat


@dataclass(frozen=True)
class CloudConfig:
    """Shape of a cloud half.

    Attributes:
        rank: numbers per latent.
        layers: layers of the target.
        kv_heads: key/value heads of the target.
        head_dim: channels per head of the target.
        tokens: image tokens of the target's grid, M.
        rotary_dim: channels of a head that RoPE turns; 0 for all.
        interleaved: the target's RoPE pairs neighbouring channels.
        mix_width: width of the mixing block, at most 256; 0 for none.
        mix_depth: layers of the mixing block.
        mix_heads: attention heads of each.
        mix_expand: width of their MLPs, in multiples of `mix_width`.
        inner: numbers per token after mixing; those past `rank` start at zero and are the mixing
            block's to fill in from the other tokens. 0 stands for `rank`.
        tokens_in: image tokens of the source's grid, N; 0 where it is the target's.
    """

    rank: int
    layers: int
    kv_heads: int
    head_dim: int
    tokens: int
    rotary_dim: int = 0
    interleaved: bool = False
    mix_width: int = 0
    mix_depth: int = 1
    mix_heads: int = 4
    mix_expand: int = 2
    inner: int = 0
    tokens_in: int = 0

    def __post_init__(self) -> None:
        """Check the door.

        Raises:
            BundleFormatError: a size out of range.
        """
        sizes = (self.rank, self.layers, self.kv_heads, self.head_dim, self.tokens)
        if any(not 0 < size <= 65536 for size in sizes) or not 0 <= self.tokens_in <= 65536:
            raise BundleFormatError(f"a cloud half needs positive sizes, not {sizes}")
        if not 0 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise BundleFormatError(
                f"RoPE cannot turn {self.rotary_dim} of {self.head_dim} channels"
            )
        if not 0 <= self.mix_width <= MAX_MIX_WIDTH or not 0 < self.mix_expand <= 16:
            raise BundleFormatError(
                f"the mixing block's width is 0..{MAX_MIX_WIDTH}, not {self.mix_width}"
            )
        if not 0 < self.mix_depth <= MAX_MIX_DEPTH:
            raise BundleFormatError(
                f"the mixing block has 1..{MAX_MIX_DEPTH} layers, not {self.mix_depth}"
            )
        if self.inner and not self.rank <= self.inner <= 65536:
            raise BundleFormatError(
                f"the inner width {self.inner} is below the rank {self.rank} or out of range"
            )
        if self.inner > self.rank and not self.mix_width:
            raise BundleFormatError("an inner width above the rank needs a mixing block")
        if self.mix_heads < 1 or self.mix_width % self.mix_heads:
            raise BundleFormatError(
                f"{self.mix_heads} heads do not divide the mixing width {self.mix_width}"
            )

    @property
    def up_rank(self) -> int:
        """Rows of `up`: numbers per token after mixing."""
        return self.inner or self.rank

    @property
    def state_dim(self) -> int:
        """Numbers in one token's cache state: 2 * layers * kv_heads * head_dim."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @classmethod
    def of(
        cls,
        target: KVLayout,
        rank: int,
        mix_width: int = 0,
        mix_depth: int = 1,
        inner: int = 0,
        tokens_in: int = 0,
    ) -> CloudConfig:
        """The configuration that writes into `target`'s cache.

        Raises:
            UnsupportedModelError: its layers rotate keys differently.
        """
        if target.layer_ropes:
            raise UnsupportedModelError(
                f"{target.model_id} has a RoPE per layer type, which the reference's cloud half "
                "does not serve; train a family with `projector train`"
            )
        return cls(
            rank=rank,
            layers=target.layers,
            kv_heads=target.kv_heads,
            head_dim=target.head_dim,
            tokens=target.tokens,
            rotary_dim=target.rope.rotary_dim,
            interleaved=target.rope.interleaved,
            mix_width=mix_width,
            mix_depth=mix_depth,
            inner=inner,
            tokens_in=tokens_in,
        )


class MixLayer(nn.Module):
    """One pre-norm transformer layer over a frame's tokens."""

    def __init__(self, config: CloudConfig) -> None:
        super().__init__()
        width, hidden = config.mix_width, config.mix_width * config.mix_expand
        self.heads = config.mix_heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Mix tokens `[B, M, width]`: they look at each other, or at `seen [B, N, width]`."""
        batch, tokens, width = x.shape
        query, key, value = self._heads(x)
        if seen is not None:
            _, key, value = self._heads(seen)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.merge(mixed.transpose(1, 2).reshape(batch, tokens, width))
        widened = functional.gelu(self.widen(self.norm_mlp(x)), approximate="tanh")
        added: Tensor = x + self.narrow(widened)
        return added

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, heads, N, width / heads]`."""
        qkv = self.qkv(self.norm_attention(x)).view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


class Mix(nn.Module):
    """The mixing block: a few transformer layers over a frame's tokens, in latent space.

    A residual on the latents: at initialisation it changes nothing. Between two grids its first
    layer's queries stand at the target's positions and look at the source's tokens.
    """

    def __init__(self, config: CloudConfig) -> None:
        super().__init__()
        width = config.mix_width
        self.inward = nn.Linear(config.rank, width)
        self.position = nn.Parameter(torch.randn(config.tokens, width) * 0.02)
        self.position_in: nn.Parameter | None = None
        if config.tokens_in:
            self.position_in = nn.Parameter(torch.randn(config.tokens_in, width) * 0.02)
        self.layers = nn.ModuleList(MixLayer(config) for _ in range(config.mix_depth))
        self.norm_out = nn.LayerNorm(width)
        self.outward = nn.Linear(width, config.up_rank)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, latents: Tensor, sent: Tensor) -> Tensor:
        """Latents at the target's places to as many that hold more.

        Args:
            latents: `[B, M, r]`, interpolated to the target's grid where it is another.
            sent: `[B, N, r]`, on the source's grid.

        Returns:
            `[B, M, up_rank]`.
        """
        x = self.inward(latents) + self.position
        seen = None if self.position_in is None else self.inward(sent) + self.position_in
        for layer in self.layers:
            x, seen = layer(x, seen), None
        filled_in: Tensor = self.outward(self.norm_out(x))
        rank = latents.shape[-1]
        if filled_in.shape[-1] == rank:
            return latents + filled_in
        return torch.cat((latents + filled_in[..., :rank], filled_in[..., rank:]), dim=-1)


class CloudHalf(nn.Module):
    """Latents to rotated keys and values: fill, mix, `up`, de-normalise, split, rotate.

    `up [up_rank, d_r]` acts in the target's normalised space: `y = (z @ up) * y_scale + y_mean`,
    with a token's `d_r` numbers ordered (k|v, layer, head, channel). Dropped tokens become
    `empty [r]`.
    """

    y_mean: Tensor
    y_scale: Tensor

    def __init__(
        self,
        config: CloudConfig,
        up: Tensor | None = None,
        y_mean: Tensor | None = None,
        y_scale: Tensor | None = None,
        empty: Tensor | None = None,
        between: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        wide = config.state_dim
        start = torch.randn(config.up_rank, wide) * config.rank**-0.5 if up is None else up
        self.up = nn.Parameter(start.detach().clone().float())
        self.empty = nn.Parameter(
            torch.zeros(config.rank) if empty is None else empty.detach().clone().float()
        )
        self.register_buffer("y_mean", _static(y_mean, torch.zeros(wide)))
        self.register_buffer("y_scale", _static(y_scale, torch.ones(wide)))
        self.between: Tensor | None
        across = _static(between, torch.zeros(config.tokens, config.tokens_in))
        self.register_buffer("between", across if config.tokens_in else None)
        self.mix = Mix(config) if config.mix_width else None

    @property
    def boundaries(self) -> Boundaries:
        """What goes in and comes out; a mixing block fixes the number of tokens."""
        c = self.config
        rotary_dim = c.rotary_dim or c.head_dim
        free_tokens = self.mix is None and not c.tokens_in
        return Boundaries(c.tokens_in or c.tokens, c.tokens, c.rank, rotary_dim, free_tokens)

    def fill(self, latents: Tensor, kept: Tensor) -> Tensor:
        """Put `empty` where `kept [B, N]` is 0; what `latents` held there is ignored, NaN too."""
        return torch.where(kept.unsqueeze(-1) > 0.5, latents, self.empty)

    def latent(self, latents: Tensor, kept: Tensor) -> Tensor:
        """Filled and mixed latents `[B, M, up_rank]`."""
        filled = self.fill(latents, kept)
        placed = filled if self.between is None else self.between @ filled
        return placed if self.mix is None else self.mix(placed, filled)

    def state(self, latents: Tensor, kept: Tensor) -> Tensor:
        """The target's flat states `[B, M, d_r]`, keys un-rotated."""
        return self.latent(latents, kept) @ (self.up * self.y_scale) + self.y_mean

    def forward(
        self, latents: Tensor, kept: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The target's cache of the image tokens.

        Args:
            latents: `[B, N, r]` float.
            kept: `[B, N]`, 1 where the token was sent, 0 where it was dropped; float or bool.
            cos: `[M, rotary_dim]` at the target's positions.
            sin: likewise.

        Returns:
            Keys (rotated) and values, both `[layers, B, kv_heads, M, head_dim]`.
        """
        c = self.config
        z = self.latent(latents, kept.to(latents.dtype))[None, :, None]
        # One small product per layer and head lands in the cache's order: no transposed copy.
        shape = (2, c.layers, c.kv_heads, c.head_dim)
        up = (self.up * self.y_scale).view(c.up_rank, *shape).permute(1, 2, 3, 0, 4).unsqueeze(2)
        mean = self.y_mean.view(*shape).unsqueeze(2).unsqueeze(4)
        keys, values = z @ up[0] + mean[0], z @ up[1] + mean[1]
        return apply_rotation(keys, cos, sin, c.interleaved), values

    def to_bytes(self) -> bytes:
        """The weights as one safetensors blob, the configuration in its metadata."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        plain = asdict(self.config)
        if not self.config.tokens_in:  # as halves were written before there were two grids
            del plain["tokens_in"]
        config = json.dumps(plain, sort_keys=True)
        blob: bytes = save_tensors(tensors, metadata={"cloud_half": config})
        return blob

    @classmethod
    def from_bytes(cls, blob: bytes) -> CloudHalf:
        """Read what `to_bytes` wrote.

        Raises:
            BundleFormatError: not such a blob, or tensors that do not fit its configuration.
        """
        try:
            tensors: dict[str, Tensor] = load_tensors(blob)
            header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
            config = _config(json.loads(header["__metadata__"]["cloud_half"]))
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleFormatError(f"not a cloud half: {in_words(error)}") from error
        half = cls(config)
        try:
            half.load_state_dict(tensors)
        except RuntimeError as error:
            raise BundleFormatError(
                f"the cloud half's tensors do not fit its configuration: {error}"
            ) from error
        return half.eval()


def _config(raw: Mapping[str, Any]) -> CloudConfig:
    known = {field.name for field in fields(CloudConfig)}
    if set(raw) | {"tokens_in"} != known:
        raise ValueError(f"configuration fields are {sorted(raw)}, expected {sorted(known)}")
    for name, value in raw.items():
        if type(value) is not (bool if name == "interleaved" else int):
            raise ValueError(f"field '{name}' has the value {value!r}")
    return CloudConfig(**raw)


def _static(given: Tensor | None, default: Tensor) -> Tensor:
    return default if given is None else given.detach().clone().float()
