"""The latent space of a hub: what its latents are, and how a large model's cache reads as them.

NumPy only. The cloud half, which turns latents into a cache, is not here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from projector.codec.arrays import Floats, check_arrays
from projector.codec.coders import check_coding
from projector.codec.file_format import HalfFile, Parts
from projector.maps.closed_form import Statistics
from projector.maps.moments import Moments, ridge
from protos.entropy.tables import EntropyTables
from protos.errors import BundleFormatError, BundleLayoutError, CorpusError
from protos.layout import MAX_GRID_SIDE, KVLayout
from protos.points import OperatingPoint
from protos.quantize import UniformQuantizer

_CHUNK = 64  # pictures whose states are multiplied at a time

SPACE = HalfFile(
    what="latent space",
    key="neural_bridge_latent_space",
    version=1,
    fields=("target_fingerprint", "grid"),
    arrays=(
        *("reading", "y_mean", "y_scale"),
        *("centre", "latent_mean", "latent_scale", "latent_inv_cov"),
    ),
)


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """What every edge half of a hub must produce.

    Attributes:
        target_fingerprint: of the large model's layout.
        grid: rows and columns of the tokens that travel, row-major, N in all.
        points: operating points with their steps and tables, which a new edge half starts with.
        reading: R, `[d_r, r]`: latents of the large model's own z-scored cache, by ridge.
        y_mean: `[d_r]`, the mean of that cache.
        y_scale: `[d_r]`, its deviation.
        centre: `[N, r]`, mean latents at each place of the grid.
        latent_mean: `[r]`.
        latent_scale: `[r]`, their deviation over tokens.
        latent_inv_cov: `[r, r]`.
        steps: quantization steps per name, `[r]`.
        entropy: tables per name of steps.

    Raises:
        BundleFormatError: contradicting shapes, or numbers that are not finite.
    """

    target_fingerprint: str
    grid: tuple[int, int]
    points: tuple[OperatingPoint, ...]
    reading: Floats
    y_mean: Floats
    y_scale: Floats
    centre: Floats
    latent_mean: Floats
    latent_scale: Floats
    latent_inv_cov: Floats
    steps: Mapping[str, Floats]
    entropy: Mapping[str, EntropyTables]

    def __post_init__(self) -> None:
        d, r = self.reading.shape if self.reading.ndim == 2 else (0, 0)
        if not d or not r:
            raise BundleFormatError(f"latent space: a reading of shape {self.reading.shape}")
        wanted = {
            "reading": (d, r),
            "y_mean": (d,),
            "y_scale": (d,),
            "centre": (math.prod(self.grid), r),
            "latent_mean": (r,),
            "latent_scale": (r,),
            "latent_inv_cov": (r, r),
        }
        arrays = {name: getattr(self, name) for name in wanted}
        check_arrays("latent space", arrays, wanted, positive=("y_scale", "latent_scale"))
        check_coding("latent space", r, self.steps, self.entropy)
        for point in self.points:
            coded = point.kind == "latent" and point.quantizer == UniformQuantizer.name
            if coded and not {point.steps} <= self.steps.keys() & self.entropy.keys():
                raise BundleFormatError(f"latent space: point '{point.name}' lacks steps or tables")

    @property
    def rank(self) -> int:
        """Numbers per latent, r."""
        return int(self.reading.shape[1])

    @property
    def tokens(self) -> int:
        """Tokens that travel, N."""
        return len(self.centre)

    def read(self, y: npt.NDArray[np.floating]) -> Floats:
        """Latents `[..., r]` of the large model's own states `[..., d_r]`.

        Least squares pulls them towards the mean, so they are spread to the space's deviations by
        whoever fits an edge half to them.
        """
        normal: Floats = (y.astype(np.float32) - self.y_mean) / self.y_scale
        latents: Floats = np.matmul(normal, self.reading) + self.latent_mean
        return latents

    def to_bytes(self) -> bytes:
        """A safetensors blob; equal spaces give equal bytes."""
        arrays = {name: getattr(self, name) for name in SPACE.arrays}
        fields = {"target_fingerprint": self.target_fingerprint, "grid": list(self.grid)}
        return SPACE.write(Parts(fields, self.points, arrays, self.steps, self.entropy, {}))

    @classmethod
    def from_bytes(cls, blob: bytes) -> LatentSpace:
        """Read untrusted bytes in the form that `to_bytes` writes.

        Raises:
            BundleFormatError: it is not such a blob.
        """
        parts = SPACE.read(blob)
        grid = parts.fields["grid"]
        sides = [n for n in grid if type(n) is int] if isinstance(grid, list) else []
        if sides != grid or len(sides) != 2 or not all(0 < n <= MAX_GRID_SIDE for n in sides):
            raise BundleFormatError(f"latent space: a grid of {grid!r}")
        return cls(
            target_fingerprint=str(parts.fields["target_fingerprint"]),
            grid=(sides[0], sides[1]),
            points=parts.points,
            steps=parts.steps,
            entropy=parts.entropy,
            **parts.arrays,
        )


@dataclass(frozen=True)
class Reading:
    """R and what it was fitted with.

    Attributes:
        matrix: `[d_r, r]`, from z-scored states.
        y_stats: mean and deviation of the large model's states.
        z_stats: mean and deviation of the latents.
        weight: ridge weight, in units of a dimension's variance.
        explained: share of the latents' variance that R explains on pictures left out.
    """

    matrix: Floats
    y_stats: Statistics
    z_stats: Statistics
    weight: float
    explained: float


_READING_WEIGHT = 1e-3
"""R's ridge weight. At d_r = 4,096 and 1,024 pictures, 1e-4 to 1e-2 explain equally much."""
_HELD = 4  # one picture in so many is held out to tell how much R explains


def fit_reading(
    y: npt.NDArray[np.floating], z: npt.NDArray[np.floating], weight: float = _READING_WEIGHT
) -> Reading:
    """Fit R by ridge regression.

    Args:
        y: the large model's states, `[n, N, d_r]`.
        z: latents of the same pictures, `[n, N, r]`.
        weight: ridge weight, in units of a dimension's variance.

    Raises:
        BundleLayoutError: the grids differ.
        CorpusError: fewer than four pictures.
    """
    if y.shape[:2] != z.shape[:2]:
        raise BundleLayoutError(
            f"latents of {z.shape[1]} tokens cannot be read from a cache of {y.shape[1]}: R is "
            "token by token"
        )
    if len(y) < _HELD:
        raise CorpusError(f"{len(y)} pictures: R is fitted to {_HELD} at least")
    out = np.arange(len(y)) % _HELD == 0
    fitted, held = (_moments(y, z, rows) for rows in (~out, out))
    first = ridge(*fitted.normalised(), weight)
    error = held.squared_error(first, fitted.x_stats, fitted.y_stats)
    whole = fitted + held
    matrix = ridge(*whole.normalised(), weight) * whole.y_stats.scale
    return Reading(
        matrix.astype(np.float32), whole.x_stats, whole.y_stats, weight, 1 - float(error.mean())
    )


def _moments(
    y: npt.NDArray[np.floating], z: npt.NDArray[np.floating], rows: npt.NDArray[np.bool_]
) -> Moments:
    chosen = np.flatnonzero(rows)
    chunks = (chosen[at : at + _CHUNK] for at in range(0, len(chosen), _CHUNK))
    return Moments.of((y[some], z[some]) for some in chunks)


def require_target(space: LatentSpace, target: KVLayout) -> None:
    """Refuse a large model that the space is not of.

    Raises:
        BundleLayoutError: it has another layout.
    """
    if space.target_fingerprint not in target.fingerprints:
        raise BundleLayoutError(
            f"the hub is of a large model with layout {space.target_fingerprint[:12]}, the one "
            f"that runs is {target.model_id} with layout {target.fingerprint[:12]}"
        )
