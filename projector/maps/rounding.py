"""What comes through while a map is trained: latents rounded as the codec will round them (torch).

Knows latents, steps and what a bit costs. Does not know: maps, corpora, questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Way:
    """What happens to latents between the two halves of a map while it is trained.

    Attributes:
        scale: they are rounded to multiples of so many steps; 0: they are not rounded.
        quiet: tokens whose squared levels sum to less than this travel as the mean at their place,
            as at an operating point; only where latents are rounded.
        kept: which tokens travel, bool `[B, N]`; None for all. The others become `empty`.
    """

    scale: float = 0.0
    quiet: float = 0.0
    kept: Tensor | None = None


WHOLE = Way()


class Rounding(nn.Module):
    """Quantization steps that are trained with a map, and what stands for a dropped token.

    Attributes:
        log_steps: `[r]`.
        empty: `[r]`.
        x_place: `[N, d_s]`, the mean source state at each place of the grid.
    """

    x_place: Tensor

    def __init__(self, steps: Tensor, x_place: Tensor) -> None:
        """Starts at given steps, `[r]`."""
        super().__init__()
        self.log_steps = nn.Parameter(steps.log())
        self.empty = nn.Parameter(torch.zeros_like(steps))
        self.register_buffer("x_place", x_place)

    @classmethod
    def blank(cls, rank: int, tokens: int, state_dim: int) -> Rounding:
        """One to load weights into."""
        return cls(torch.ones(rank), torch.zeros(tokens, state_dim))

    @property
    def steps(self) -> Tensor:
        """Quantization steps `[r]`."""
        return self.log_steps.exp()

    def rounded(self, latents: Tensor, centre: Tensor, way: Way) -> tuple[Tensor, Tensor]:
        """Latents as the other side will read them, and their levels before rounding.

        The gradient goes straight through the rounding, and to the steps (Esser et al. 2020,
        arXiv:1902.08153); added noise instead would drown latents below half a step.

        Args:
            latents: `[B, N, r]`.
            centre: `[N, r]`, the mean at each place.
            way: how they are rounded.
        """
        quantum = self.steps * way.scale
        levels = (latents - centre) / quantum
        sent = levels.round()
        if way.quiet:
            sent = sent * (levels.square().sum(dim=-1, keepdim=True) >= way.quiet)
        return (levels + (sent - levels).detach()) * quantum + centre, levels


def bits(levels: Tensor) -> Tensor:
    """About how many bits an entropy coder spends per number of `levels [B, N, r]`.

    A stand-in with a gradient: log2(1 + distance from the place's mean), so that tokens with
    nothing to tell collapse onto one symbol. (Rate and distortion trained together as by Balle et
    al. 2017, arXiv:1611.01704.)
    """
    return torch.log2(1 + levels.abs()).mean()
