"""The base classes of maps: `y = C(D(x))`, edge half D, cloud half C (torch).

Nothing here needs a corpus, a model or a question.

A member of the family is a dataclass (its configuration) and a module (its weights) in one file.
The calls, in order: `Family.build` makes the module for two layouts and fits its closed form, if
it has one; gradient training may follow; `Map.to_bytes` and `load` store it; `ServedMap` gives it
a bundle's graph inputs and outputs. To add a member: a file, a line in
`projector/maps/__init__.py`, a line in the contract test's list.
"""

from __future__ import annotations

import copy
import difflib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from projector.maps.moments import Moments
from projector.maps.rounding import WHOLE, Rounding, Way, bits
from projector.models.foreign import in_words
from protos.errors import BundleFormatError, BundleLayoutError, FitError, FrameMalformedError
from protos.layout import KVLayout
from protos.process.files import write_files

Floats = npt.NDArray[np.float32]

METADATA = "neural_bridge_map"
_POWER_STEPS = 100
_STEPS_RATE = 4.0  # factor on the learning rate of quantization steps
_LEAST_KEY_WEIGHT = (
    1e-3  # channels with a smaller key-norm weight say nothing about the key's length
)


@dataclass(frozen=True)
class Family(ABC):
    """A family of maps: its configuration."""

    name: ClassVar[str]
    closed: ClassVar[bool] = True
    """Whether `build` returns a fitted map; otherwise, a start for gradient training."""
    per_token: ClassVar[bool] = True
    """Whether each token is mapped alone, so that any number of tokens is accepted."""
    absent: ClassVar[dict[str, Any]] = {}
    """Values of later settings for maps written before them, if they differ from the defaults."""

    @property
    def asks_answers(self) -> bool:
        """Whether `build` wants a metric of the target's answers (`Moments.metric`)."""
        return False

    @property
    def needs_target_gram(self) -> bool:
        """Whether `build` wants the target's Gram matrix (`Moments.yy`)."""
        return False

    @abstractmethod
    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """Make the unfitted module for two layouts.

        Raises:
            FitError: the configuration is impossible for these layouts.
        """

    def build(self, source: KVLayout, target: KVLayout, moments: Moments) -> Map:
        """Make the module and fit its closed form.

        Args:
            source: the edge model's layout, `d_s` per token.
            target: the cloud model's layout, `d_r` per token.
            moments: of training pairs.

        Raises:
            FitError: the configuration is impossible for these layouts, or the system singular.
        """
        if (moments.d_s, moments.d_r) != (source.state_dim, target.state_dim):
            raise FitError(
                f"the pairs are {moments.d_s} -> {moments.d_r} wide, the layouts "
                f"{source.state_dim} -> {target.state_dim}: they are from other models"
            )
        made = self.make(source, target)
        made.take_statistics(moments)
        with torch.no_grad():
            made.fit(moments)
        return made


FAMILIES: dict[str, type[Family]] = {}
"""The members by name. `projector/maps/__init__.py` lists them."""


def family(name: str) -> type[Family]:
    """The family of that name.

    Raises:
        FitError: the name is unknown; the message suggests the nearest.
    """
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise FitError(f"there is no family '{name}' (there are {', '.join(FAMILIES)}){hint}")
    return FAMILIES[name]


class Map(nn.Module, ABC):
    """A map: its weights.

    Attributes:
        family: its configuration.
        source: layout of its input states.
        target: layout of its output states.
        x_mean: `[d_s]`; with `x_scale`, `y_mean [d_r]` and `y_scale` the static statistics.
    """

    x_mean: Tensor
    x_scale: Tensor
    y_mean: Tensor
    y_scale: Tensor
    key_inverse: Tensor
    key_lengths: Tensor
    ridge_weight: float | None = None
    """Ridge weight of the closed form, if it was fitted in this process."""

    def __init__(self, family: Family, source: KVLayout, target: KVLayout) -> None:
        super().__init__()
        self.family, self.source, self.target = family, source, target
        self.rounding: Rounding | None = None
        for name, width in (("x", source.state_dim), ("y", target.state_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_scale", torch.ones(width))
        self.to_grid: Tensor | None
        between = grid_weights(source.grid, target.grid)
        self.register_buffer("to_grid", between, persistent=False)
        if target.qk_norm:
            self.register_buffer("key_inverse", torch.zeros(target.layers, target.head_dim))
            self.register_buffer("key_lengths", torch.zeros(target.layers, target.kv_heads))

    def take_statistics(self, moments: Moments) -> None:
        """Set the static statistics from training pairs."""
        for name, stats in (("x", moments.x_stats), ("y", moments.y_stats)):
            getattr(self, f"{name}_mean").copy_(torch.from_numpy(stats.mean))
            getattr(self, f"{name}_scale").copy_(torch.from_numpy(stats.scale))

    def start_rounding(self, x_place: Tensor) -> None:
        """From now on, learn quantization steps and the latents of a dropped token.

        Args:
            x_place: `[N, d_s]`, the mean source state at each grid position.
        """
        self.rounding = Rounding(self.steps(), x_place)

    def take_key_norm(self, weights: Tensor, moments: Moments) -> None:
        """From now on, give keys the length that the target's own key norm gives them.

        Regression shrinks uncertain predictions, and keys that are too short flatten attention.

        Args:
            weights: of the target's key norm, `[layers, head_dim]`.
            moments: of training pairs; they give the mean length.
        """
        told = weights.abs() > _LEAST_KEY_WEIGHT
        inverse = torch.where(told, 1 / torch.where(told, weights, 1.0), 0.0)
        square = torch.from_numpy(moments.y_square / moments.count).float()
        keys = square.unflatten(0, self._split)[0]
        self.key_inverse.copy_(inverse)
        self.key_lengths.copy_((keys * inverse.square()[:, None]).sum(-1).sqrt())

    def take_key_norm_of(self, other: Map) -> None:
        """As `take_key_norm`, copied from a map to the same target."""
        if self.target.qk_norm:
            self.key_inverse.copy_(other.key_inverse)
            self.key_lengths.copy_(other.key_lengths)

    # -- what a member defines ---------------------------------------------------------------------

    def fit(self, moments: Moments) -> None:
        """Set the weights from `moments` in closed form; does nothing by default."""

    def down(self, x: Tensor) -> Tensor:
        """The edge half: z-scored states `[..., N, d_s]` to latents `[..., N, r]`."""
        return x

    @abstractmethod
    def up(self, z: Tensor) -> Tensor:
        """The cloud half, token by token: `[B, M, r]` to z-scored target states `[B, M, d_r]`."""

    @property
    def rank(self) -> int:
        """Numbers per token that travel, r."""
        return self.source.state_dim

    @property
    def up_rank(self) -> int:
        """Numbers per token that `up` takes; more than `rank` if a `mix` fills some in."""
        return self.rank

    def latent(self, z: Tensor) -> Tensor:
        """Latents that travelled, `[B, N, r]`, to the input of `up`, on the target's grid."""
        return self.regrid(z)

    def onto(self) -> Tensor | None:
        """`up` as a matrix `[up_rank, d_r]` on z-scores; None if it is anything else."""
        return None

    def weights(self) -> Tensor | None:
        """The whole map as one matrix `[d_s, d_r]` on z-scores; None if it is not linear."""
        return None

    def penalty(self) -> Tensor:
        """The loss term that training adds to the errors; zero by default."""
        return torch.zeros(())

    # -- what all have -----------------------------------------------------------------------------

    def normal(self, x: Tensor) -> Tensor:
        """Z-score source states `[..., d_s]`."""
        return (x - self.x_mean) / self.x_scale

    def cloud(self, z: Tensor) -> Tensor:
        """Latents that travelled, `[B, N, r]`, to z-scored target states `[B, M, d_r]`."""
        return self.up(self.latent(z))

    def fill(self, z: Tensor, kept: Tensor) -> Tensor:
        """Replace the latents `[B, N, r]` of dropped tokens by the mean, or by learnt ones.

        Args:
            z: latents; those of dropped tokens are ignored, NaN too.
            kept: `[B, N]`, 1 or true for tokens that travelled.
        """
        empty = torch.zeros_like(z) if self.rounding is None else self.rounding.empty
        return torch.where(kept.unsqueeze(-1) > 0.5, z, empty)

    def regrid(self, z: Tensor) -> Tensor:
        """Tokens of the source's grid `[B, N, d]` interpolated to the target's `[B, M, d]`."""
        return z if self.to_grid is None else self.to_grid @ z

    def predict(self, x: Tensor) -> Tensor:
        """Source states `[B, N, d_s]` to z-scored target states `[B, M, d_r]`."""
        return self.cloud(self.down(self.normal(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Source states `[B, N, d_s]` to target states `[B, M, d_r]`, keys un-rotated."""
        return self.states(self.predict(x))

    def states(self, y: Tensor) -> Tensor:
        """Scale z-scored target states `[..., d_r]` back to the target's own units.

        If the target normalises its keys, they lie on ellipsoids `||k / w|| = const`: a predicted
        key is moved along its ray onto its ellipsoid (where the stored length is 0, it stays).
        """
        states = y * self.y_scale + self.y_mean
        if not self.target.qk_norm:
            return states
        keys, values = states.unflatten(-1, self._split).unbind(-4)
        length = (keys * self.key_inverse[:, None]).norm(dim=-1).clamp(min=_LEAST_KEY_WEIGHT)
        ratio = torch.where(self.key_lengths > 0, self.key_lengths / length, 1.0)
        return torch.stack([keys * ratio.unsqueeze(-1), values], dim=-4).flatten(-4)

    @property
    def _split(self) -> tuple[int, int, int, int]:
        return 2, self.target.layers, self.target.kv_heads, self.target.head_dim

    @property
    def y_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the target's states, `[d_r]` each."""
        return self.y_mean, self.y_scale

    def travel(self, x: Tensor, way: Way = WHOLE) -> tuple[Tensor, Tensor]:
        """Target states from latents as they arrive, and bits per latent number.

        A map that does not learn to round sends latents unchanged, whatever the way.
        """
        if self.rounding is None:
            return self(x), torch.zeros(())
        latents, cost = self.down(self.normal(x)), x.new_zeros(())
        if way.scale:
            latents, levels = self.rounding.rounded(latents, self.centre(), way)
            cost = bits(levels if way.kept is None else levels * way.kept.unsqueeze(-1))
        if way.kept is not None:
            latents = self.fill(latents, way.kept)
        return self.states(self.cloud(latents)), cost

    def centre(self) -> Tensor:
        """Mean latents at each grid position, `[N, r]`; only for a map that learns to round."""
        assert self.rounding is not None
        return self.down(self.normal(self.rounding.x_place))

    def groups(self) -> list[dict[str, Any]]:
        """All parameters, for an optimiser; quantization steps get a higher learning rate."""
        if self.rounding is None:
            return [{"params": list(self.parameters()), "scale": 1.0}]
        steps = self.rounding.log_steps
        rest = [one for one in self.parameters() if one is not steps]
        return [{"params": rest, "scale": 1.0}, {"params": [steps], "scale": _STEPS_RATE}]

    def steps(self) -> Tensor:
        """Quantization steps `[r]`: learnt, or chosen so that each moves the target equally far.

        (Reverse water-filling, on z-scores; exact if the cloud half is linear.)
        """
        if self.rounding is not None:
            return self.rounding.steps.detach()
        with torch.no_grad():
            probes = torch.eye(self.rank)[:, None].expand(-1, self.target.tokens, -1)
            still = torch.zeros(1, self.target.tokens, self.rank)
            probes, still = (
                nn.functional.pad(one, (0, self.up_rank - self.rank)) for one in (probes, still)
            )
            moved = (self.up(probes) - self.up(still)).flatten(1).norm(dim=1)
            moved = moved / self.target.tokens**0.5
            least = 1e-3 * float(moved.max()) + 1e-12
            steps: Tensor = moved.clamp(min=least).reciprocal()
        return steps

    def parameters_count(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    @property
    def grid_norm(self) -> float:
        """Largest factor by which interpolation between the grids stretches a frame."""
        if self.to_grid is None:
            return 1.0
        return float(torch.linalg.matrix_norm(self.to_grid.double(), ord=2))

    def operator_norm(self) -> float | None:
        """Largest factor by which the map stretches a difference of z-scored source frames.

        The largest singular value, by power iteration on `W W^T` in float64, times `grid_norm` (a
        frame's map is the Kronecker product of the two). None if the map is not linear; a map that
        sets the keys' length is not.
        """
        weights = self.weights()
        if weights is None or self.target.qk_norm:
            return None
        w = weights.detach().double()
        vector = torch.ones(w.shape[0], dtype=torch.float64) / w.shape[0] ** 0.5
        gram = w @ w.T
        for _ in range(_POWER_STEPS):
            vector = torch.nn.functional.normalize(gram @ vector, dim=0)
        return self.grid_norm * float((vector @ (gram @ vector)).clamp(min=0).sqrt())

    def in_precision(self, dtype: torch.dtype) -> Map:
        """A copy with weights rounded to a narrower float type; it still runs in float32."""
        other = copy.deepcopy(self)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(parameter.to(dtype).float())
        return other

    def to_bytes(self, dtype: torch.dtype = torch.float32) -> bytes:
        """Serialise weights to safetensors, with configuration and both layouts as metadata.

        Args:
            dtype: stored dtype of the weights; statistics stay float32, and a map that is read
                runs in float32 again.
        """
        plain = {
            "family": self.family.name,
            "config": asdict(self.family),
            "source": json.loads(self.source.to_json()),
            "target": json.loads(self.target.to_json()),
        }
        weights = {name for name, _ in self.named_parameters()}
        tensors = {
            name: tensor.detach().cpu().to(dtype if name in weights else tensor.dtype).contiguous()
            for name, tensor in self.state_dict().items()
        }
        blob: bytes = save_tensors(tensors, metadata={METADATA: json.dumps(plain, sort_keys=True)})
        return blob


def grid_weights(source: tuple[int, int], target: tuple[int, int]) -> Tensor | None:
    """Bilinear weights from one row-major token grid to another, `[M, N]`; None if they are equal.

    Cell centres are aligned, as in resizing a picture.
    """
    if source == target:
        return None
    rows, columns = (_line_weights(a, b) for a, b in zip(source, target, strict=True))
    return torch.from_numpy(np.kron(rows, columns).astype(np.float32))


def _line_weights(source: int, target: int) -> Floats:
    place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.minimum(place.astype(np.int64), max(0, source - 2))
    share = (place - low).astype(np.float32)
    weights = np.zeros((target, source), dtype=np.float32)
    weights[np.arange(target), low] = 1 - share
    weights[np.arange(target), np.minimum(low + 1, source - 1)] += share
    return weights


F = TypeVar("F", bound=Family)


def configured(cls: type[F], config: dict[str, Any]) -> F:
    """A family's dataclass from its JSON form.

    Raises:
        BundleFormatError: unknown fields, or values of the wrong type.
    """
    defaults = asdict(cls())
    if not isinstance(config, dict) or not set(config) <= set(defaults):
        raise BundleFormatError(f"family '{cls.name}' has the fields {sorted(defaults)}")
    for name, value in config.items():
        kind = type(defaults[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise BundleFormatError(f"family '{cls.name}': field '{name}' holds {value!r}")
    return cls(**{**cls.absent, **config})


def read(
    blob: bytes,
    source: KVLayout | None,
    target: KVLayout,
    families: dict[str, type[Family]],
) -> Map:
    """Read a blob from `Map.to_bytes`, for the running layouts.

    Without a source, the map's own source counts: for the cloud half of a bundle, it was checked.

    Raises:
        BundleFormatError: not such a blob, or tensors that do not fit its configuration.
        BundleLayoutError: it was made for other layouts.
    """
    try:
        tensors: dict[str, Tensor] = load_tensors(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        plain = json.loads(header["__metadata__"][METADATA])
        made_for = [KVLayout.from_json(json.dumps(plain[side])) for side in ("source", "target")]
        cls = families[plain["family"]]
        family = configured(cls, plain["config"])
    except (
        *(SafetensorError, FrameMalformedError, RecursionError),
        *(ValueError, KeyError, TypeError),
    ) as error:
        raise BundleFormatError(f"not a map: {in_words(error)}") from error
    source = source or made_for[0]
    for side, made, live in zip(("source", "target"), made_for, (source, target), strict=True):
        if made.fingerprint not in live.fingerprints:
            raise BundleLayoutError(
                f"the map was made for the {side} {made.model_id} (d={made.state_dim}), the live "
                f"one is {live.model_id} (d={live.state_dim})"
            )
    try:
        found = family.make(source, target)
        if "rounding.log_steps" in tensors:
            found.rounding = Rounding.blank(found.rank, source.tokens, source.state_dim)
        found.load_state_dict(tensors)
    except (FitError, RuntimeError) as error:
        raise BundleFormatError(f"the map's tensors do not fit its family: {error}") from error
    return found.eval()


def write(path: Path, made: Map) -> None:
    """Write a map to a file, whole or not at all.

    Raises:
        FitError: it holds NaN or infinity.
        DiskFullError: there is no room; an earlier map stays whole.
        ConfigError: it cannot be written for another reason.
    """
    bad = [name for name, t in made.state_dict().items() if not bool(torch.isfinite(t).all())]
    if bad:
        raise FitError(f"the fitted map holds NaN or infinity ({', '.join(bad)}): not written")
    write_files(path.parent, {path.name: made.to_bytes()})
