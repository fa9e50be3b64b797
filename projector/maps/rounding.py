"""Rounds latents in training as the codec will round them, and estimates their bits (torch)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Way:
    """How latents travel between the two halves of a map in training.

    Attributes:
        scale: latents are rounded to multiples of this many steps; 0: no rounding.
        quiet: tokens whose squared levels sum to less than this are sent as the mean at their
            position, as at an operating point; only if latents are rounded.
        kept: tokens that travel, bool `[B, N]`; None for all. The others become `empty`.
    """

    scale: float = 0.0
    quiet: float = 0.0
    kept: Tensor | None = None


WHOLE = Way()


class Rounding(nn.Module):
    """Quantization steps that are trained with a map, and the latents of a dropped token.

    Attributes:
        log_steps: log of the steps, `[r]`.
        empty: latents of a dropped token, `[r]`.
        x_place: `[N, d_s]`, the mean source state at each grid position.
    """

    x_place: Tensor

    def __init__(self, steps: Tensor, x_place: Tensor) -> None:
        """Start from the given steps, `[r]`."""
        super().__init__()
        self.log_steps = nn.Parameter(steps.log())
        self.empty = nn.Parameter(torch.zeros_like(steps))
        self.register_buffer("x_place", x_place)

    @classmethod
    def blank(cls, rank: int, tokens: int, state_dim: int) -> Rounding:
        """An empty instance to load weights into."""
        return cls(torch.ones(rank), torch.zeros(tokens, state_dim))

    @property
    def steps(self) -> Tensor:
        """Quantization steps `[r]`."""
        return self.log_steps.exp()

    def rounded(self, latents: Tensor, centre: Tensor, way: Way) -> tuple[Tensor, Tensor]:
        """Latents as the cloud will decode them, and their levels before rounding.

        The gradient passes straight through the rounding, and to the steps (Esser et al. 2020,
        arXiv:1902.08153). Added noise would instead drown latents below half a step.

        Args:
            latents: `[B, N, r]`.
            centre: `[N, r]`, the mean at each position.
            way: how they are rounded.
        """
        quantum = self.steps * way.scale
        levels = (latents - centre) / quantum
        sent = levels.round()
        if way.quiet:
            sent = sent * (levels.square().sum(dim=-1, keepdim=True) >= way.quiet)
        return (levels + (sent - levels).detach()) * quantum + centre, levels


def bits(levels: Tensor) -> Tensor:
    """Approximate bits per number that an entropy coder spends on `levels [B, N, r]`.

    A differentiable stand-in: log2(1 + distance from the mean at the position), so that tokens
    without information collapse to one symbol. (Rate and distortion are trained together as in
    Balle et al. 2017, arXiv:1611.01704.)
    """
    return torch.log2(1 + levels.abs()).mean()
