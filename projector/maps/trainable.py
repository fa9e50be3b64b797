"""Both halves of the default map while it is trained: latents rounded as they will travel (torch).

Knows latents, steps, rounding and what a bit costs. Does not know: corpora, questions, how it is
trained.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from projector.maps.cloud_half import CloudConfig, CloudHalf
from projector.models.foreign import in_words
from protos.errors import BundleFormatError

_METADATA = "neural_bridge_training"


@dataclass(frozen=True)
class Way:
    """What becomes of latents between the halves while a map is trained.

    Attributes:
        scale: they are rounded at so many of the map's steps; 0 for not at all.
        quiet: where they are rounded, tokens whose squared levels sum to less travel as the usual
            one at their place, as at an operating point.
        kept: which tokens travel, bool `[B, N]`; None for all. The others are the empty state.
    """

    scale: float = 0.0
    quiet: float = 0.0
    kept: Tensor | None = None


WHOLE = Way()


class LowRankMap(nn.Module):
    """Both halves of a map: `down` (the edge's) and a `CloudHalf`."""

    x_mean: Tensor
    x_scale: Tensor
    x_place: Tensor

    def __init__(
        self,
        x_mean: Tensor,
        x_scale: Tensor,
        x_place: Tensor,
        down: Tensor,
        steps: Tensor,
        cloud: CloudHalf,
    ) -> None:
        """Joins the halves.

        Args:
            x_mean: `[d_s]`.
            x_scale: `[d_s]`.
            x_place: `[N, d_s]`, the mean state of each place of the grid.
            down: `[d_s, r]` on normalised source states.
            steps: `[r]` quantization steps to start from, of equal distortion in the target's
                space; they are trained with the rest.
            cloud: the other half.
        """
        super().__init__()
        self.register_buffer("x_mean", x_mean)
        self.register_buffer("x_scale", x_scale)
        self.register_buffer("x_place", x_place)
        self.log_steps = nn.Parameter(steps.log())
        self.down = nn.Parameter(down.clone())
        self.cloud = cloud

    def to_bytes(self, about: dict[str, Any]) -> bytes:
        """The weights of both halves as one safetensors blob.

        Args:
            about: how they were trained, kept beside them as JSON.
        """
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        header = {"config": asdict(self.cloud.config), "about": about}
        blob: bytes = save_tensors(tensors, metadata={_METADATA: json.dumps(header)})
        return blob

    @classmethod
    def from_bytes(cls, blob: bytes) -> tuple[LowRankMap, dict[str, Any]]:
        """Read what `to_bytes` wrote: the map, and how it was trained.

        Raises:
            BundleFormatError: not such a blob, or tensors that do not fit each other.
        """
        try:
            tensors: dict[str, Tensor] = load_tensors(blob)
            header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
            plain = json.loads(header["__metadata__"][_METADATA])
            names = ("x_mean", "x_scale", "x_place", "down", "log_steps")
            x_mean, x_scale, x_place, down, steps = (tensors[name] for name in names)
            between = tensors.get("cloud.between")
            cloud = CloudHalf(CloudConfig(**plain["config"]), between=between)
            made = cls(x_mean, x_scale, x_place, down, steps, cloud)
            made.load_state_dict(tensors)
            about: dict[str, Any] = plain["about"]
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise BundleFormatError(f"not a trained map: {in_words(error)}") from error
        return made, about

    @property
    def steps(self) -> Tensor:
        """Quantization steps `[r]`."""
        return self.log_steps.exp()

    @property
    def centre(self) -> Tensor:
        """The mean latents of each place of the grid, `[N, r]`: what need not travel."""
        return self.latents(self.x_place)

    def latents(self, x: Tensor) -> Tensor:
        """Source states `[..., d_s]` to latents `[..., r]`."""
        return ((x - self.x_mean) / self.x_scale) @ self.down

    @property
    def y_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the target's states, `[d_r]` each."""
        return self.cloud.y_mean, self.cloud.y_scale

    def predict(self, x: Tensor) -> Tensor:
        """Source states `[B, N, d_s]` to z-scored target states `[B, N, d_r]`."""
        return self.cloud.latent(self.latents(x), x.new_ones(x.shape[:2])) @ self.cloud.up

    def travel(self, x: Tensor, way: Way = WHOLE) -> tuple[Tensor, Tensor]:
        """Target states of latents as they come through, and bits per latent number."""
        latents, bits = self.latents(x), x.new_zeros(())
        kept = x.new_ones(x.shape[:2]) if way.kept is None else way.kept.to(x)
        if way.scale:
            latents, levels = self.rounded(latents, way.scale, way.quiet)
            bits = _bits(levels * kept[..., None])
        return self.cloud.state(latents, kept), bits

    def penalty(self) -> Tensor:
        """None."""
        return torch.zeros(())

    def groups(self) -> list[dict[str, Any]]:
        """Steps move faster than the rest."""
        mix = [] if self.cloud.mix is None else list(self.cloud.mix.parameters())
        rest = [self.cloud.up, self.cloud.empty, self.down, *mix]
        return [{"params": rest, "scale": 1.0}, {"params": [self.log_steps], "scale": 4.0}]

    def rounded(self, latents: Tensor, scale: float, quiet: float = 0.0) -> tuple[Tensor, Tensor]:
        """Latents as the other side will read them, and their levels before rounding.

        The gradient goes straight through the rounding, and to the steps (Esser et al. 2020,
        arXiv:1902.08153); added noise instead would drown latents below half a step.

        Args:
            latents: `[..., N, r]`.
            scale: quantization steps, in units of `steps`.
            quiet: as of a `Way`.
        """
        quantum, centre = self.steps * scale, self.centre
        levels = (latents - centre) / quantum
        sent = levels.round()
        if quiet:
            sent = sent * (levels.square().sum(dim=-1, keepdim=True) >= quiet)
        return (levels + (sent - levels).detach()) * quantum + centre, levels


def _bits(levels: Tensor) -> Tensor:
    """About how many bits an entropy coder spends per number of `levels [B, N, r]`.

    A stand-in with a gradient: log2(1 + distance from the place's mean), so that tokens with
    nothing to tell collapse onto one symbol. (Rate and distortion trained together as by Balle et
    al. 2017, arXiv:1611.01704.)
    """
    return torch.log2(1 + levels.abs()).mean()
