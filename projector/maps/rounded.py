"""A map's cloud half with its matrix products in bfloat16; norms, sums and softmax in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from projector.maps.mix import Attend
from projector.maps.served import Boundaries, ServedMap
from projector.models.rope import apply_rotation
from projector.models.rounded import RoundedLinear, round_linears

_MIXED, _WRITTEN = 16, 4
"""Frames that are mixed, and written, at once: a core's cache holds what these need."""


class RoundedMap(nn.Module):
    """Computes what `ServedMap` does, faster and a little less exactly.

    A frame's cache has the same bits whichever frames share its batch.

    Args:
        served: the map; its linear layers are replaced.
    """

    def __init__(self, served: ServedMap) -> None:
        super().__init__()
        self.boundaries: Boundaries = served.boundaries
        self.served, self.inner = served, served.inner
        target, matrix = self.inner.target, self.inner.onto()
        self.onto: RoundedLinear | None = None
        if matrix is not None and not target.qk_norm:
            scale = self.inner.y_stats[1]
            self.onto = RoundedLinear((matrix * scale).T.contiguous(), None)
        _round_attention(self.inner)
        round_linears(self.inner)

    def forward(
        self, latents: Tensor, kept: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `ServedMap.forward`."""
        if self.onto is None:
            made: tuple[Tensor, Tensor] = self.served(latents, kept, cos, sin)
            return made
        target = self.inner.target
        z = torch.cat(
            [
                self.inner.latent(self.inner.fill(some, known)).to(torch.bfloat16)
                for some, known in zip(latents.split(_MIXED), kept.split(_MIXED), strict=True)
            ]
        )
        shape = (target.layers, len(z), target.kv_heads, z.shape[1], target.head_dim)
        keys, values = latents.new_empty(shape), latents.new_empty(shape)
        for first in range(0, len(z), _WRITTEN):
            some = slice(first, first + _WRITTEN)
            self._write(z[some], cos, sin, keys[:, some], values[:, some])
        return keys, values

    def _write(self, z: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the cache of a few frames, from `z [B, M, up_rank]`."""
        target = self.inner.target
        shape = (2, target.layers, target.kv_heads, target.head_dim)
        assert self.onto is not None
        states = self.onto(z).unflatten(-1, shape).permute(2, 3, 0, 4, 1, 5).contiguous()
        mean = self.inner.y_stats[0].view(shape)[:, :, None, :, None]
        torch.add(states[1], mean[1], out=values)
        plain, width = states[0] + mean[0], cos.shape[-1]
        if target.rope.interleaved or width != target.head_dim or cos.ndim > 2:
            keys.copy_(apply_rotation(plain, cos, sin, target.rope.interleaved))
            return
        low, high = slice(width // 2), slice(width // 2, None)
        torch.mul(plain, cos, out=keys)
        keys[..., low].addcmul_(plain[..., high], sin[..., low], value=-1)
        keys[..., high].addcmul_(plain[..., low], sin[..., high])


def _round_attention(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Attend):
            setattr(module, name, _RoundedAttend(child))
        else:
            _round_attention(child)


class _RoundedAttend(nn.Module):
    """`Attend` with products in bfloat16."""

    def __init__(self, plain: Attend) -> None:
        super().__init__()
        self.plain = plain
        round_linears(plain)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """As `Attend.forward`."""
        plain = self.plain
        asking = plain.norm_query(queries).to(torch.bfloat16)
        if tokens is queries and plain.norm_token is None:
            told = asking
        else:
            told = (plain.norm_token or plain.norm_query)(tokens).to(torch.bfloat16)
        query = self._heads(plain.query(asking))
        key, value = (self._heads(one) for one in plain.key_value(told).chunk(2, dim=-1))
        logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        mixed = logits.softmax(dim=-1).to(torch.bfloat16) @ value
        x = queries + plain.merge(mixed.transpose(1, 2).flatten(-2))
        widened = _gelu(plain.widen(plain.norm_mlp(x).to(torch.bfloat16)).float())
        out: Tensor = x + plain.narrow(widened.to(torch.bfloat16))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (self.plain.heads, -1)).transpose(1, 2)
        return split


def _gelu(x: Tensor) -> Tensor:
    """GELU by tanh, written with the logistic function: torch computes it twice as fast."""
    gate = (x * x).mul_(0.0713548162726).add_(1.5957691216057).mul_(x).sigmoid_()
    return gate.mul_(x)
