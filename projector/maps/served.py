"""A map's cloud half as a bundle's graph: latents in, a rotated cache out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from projector.maps.base import Map
from projector.models.rope import apply_rotation


@dataclass(frozen=True)
class Boundaries:
    """Input and output shapes of a cloud half.

    Attributes:
        tokens_in: image tokens of the source's grid, N.
        tokens_out: image tokens of the target's grid, M.
        rank: numbers per token that travel.
        rotary_dim: channels that the target's RoPE turns.
        free_tokens: whether any number of tokens is accepted (as many come out).
        rotated_layers: number of target layers if their RoPE differs; 0 if they share one.
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


class ServedMap(nn.Module):
    """A map's cloud half as a bundle's graph.

    It takes latents, kept mask and RoPE tables, and returns the target's rotated cache.
    """

    def __init__(self, inner: Map) -> None:
        super().__init__()
        self.inner = inner

    @property
    def boundaries(self) -> Boundaries:
        """Input and output shapes."""
        source, target = self.inner.source, self.inner.target
        return Boundaries(
            source.tokens,
            target.tokens,
            self.inner.rank,
            target.rope.rotary_dim,
            free_tokens=self.inner.family.per_token and self.inner.to_grid is None,
            rotated_layers=target.layers if target.layer_ropes else 0,
        )

    def forward(
        self, latents: Tensor, kept: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The target's cache of the image tokens.

        Args:
            latents: `[B, N, r]`.
            kept: `[B, N]`, 1 for tokens that were sent; the others become the mean state, or what
                was learnt for them.
            cos: at the target's positions, from `KVLayout.rotation`.
            sin: as `cos`.

        Returns:
            Keys (rotated) and values, both `[layers, B, kv_heads, M, head_dim]`.
        """
        target = self.inner.target
        filled = self.inner.fill(latents, kept)
        shape = (2, target.layers, target.kv_heads, target.head_dim)
        matrix = self.inner.onto()
        if matrix is None or target.qk_norm:
            states = self.inner.states(self.inner.cloud(filled))
            keys, values = states.unflatten(-1, shape).permute(2, 3, 0, 4, 1, 5).unbind(0)
        else:  # one small product per layer and head writes the cache's order without a copy
            z = self.inner.latent(filled)[None, :, None]
            y_mean, y_scale = self.inner.y_stats
            up = (matrix * y_scale).view(-1, *shape)
            up, mean = (
                up.permute(1, 2, 3, 0, 4).unsqueeze(2),
                y_mean.view(*shape)[:, :, None, :, None],
            )
            keys, values = z @ up[0] + mean[0], z @ up[1] + mean[1]
        return apply_rotation(keys, cos, sin, target.rope.interleaved), values
