"""The one definition of every distortion and fidelity figure, and the four that a frame carries.

All sums are taken in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from protos.errors import FrameMalformedError, NonFiniteError
from protos.neuralbridge.v1 import bridge_pb2 as pb

Doubles = npt.NDArray[np.float64]

# A distortion figure's byte: 0 is 0, any other b is 10 ** ((b - _ONE) / _PER_DECADE).
_ONE, _PER_DECADE = 176, 64
_FIGURES = (0.0, *(10 ** ((b - _ONE) / _PER_DECADE) for b in range(1, 256)))


@dataclass(frozen=True)
class Distortion:
    """The edge's measurements of a frame, by the functions below.

    On the wire each figure is one byte on a logarithmic scale: 0, or 0.0018 to 17.1 in steps of
    3.7 %.
    """

    quantize: float = 0.0
    dropped_attention: float = 0.0
    latent_residual: float = 0.0
    unfamiliarity: float = 0.0

    def to_bytes(self) -> bytes:
        """The figures' bytes, each rounded to the nearest value of the scale; only 0 becomes 0.

        Raises:
            NonFiniteError: A figure is NaN or infinite.
            FrameMalformedError: A figure is negative.
        """
        out = bytearray()
        for entry in fields(self):
            figure = float(getattr(self, entry.name))
            if not math.isfinite(figure):
                raise NonFiniteError(f"distortion figure {entry.name} is {figure}")
            if figure < 0:
                raise FrameMalformedError(f"distortion figure {entry.name} is negative: {figure}")
            level = round(_ONE + _PER_DECADE * math.log10(figure)) if figure else 0
            out.append(min(max(level, 1), 255) if figure else 0)
        return bytes(out)

    @classmethod
    def from_bytes(cls, levels: Iterable[int]) -> Distortion:
        """Read what `to_bytes` wrote."""
        return cls(*map(_FIGURES.__getitem__, levels))

    def near(self, other: Distortion, steps: int = 1) -> Distortion:
        """These figures; the other's where both are no further apart than so many steps."""
        pairs = zip(self.to_bytes(), other.to_bytes(), strict=True)
        return Distortion.from_bytes(b if a and b and abs(a - b) <= steps else a for a, b in pairs)

    def to_proto(self) -> pb.DistortionReport:
        """As the message."""
        return pb.DistortionReport(
            quantize=self.quantize,
            dropped_attention=self.dropped_attention,
            latent_residual=self.latent_residual,
            unfamiliarity=self.unfamiliarity,
        )


def _pair(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Doubles, Doubles]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise FrameMalformedError(f"cannot compare arrays {first.shape} and {second.shape}")
    return first, second


def _ratio(error: float, size: float) -> float:
    if size > 0:
        return error / size
    return 0.0 if error == 0 else float("inf")


def relative_l2(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """`‖a - b‖ / ‖a‖` over all elements.

    Args:
        a: The truth, any shape.
        b: The estimate, same shape.

    Returns:
        0 if they are equal; infinity if only `a` is all zeros.

    Raises:
        FrameMalformedError: The shapes differ.
    """
    first, second = _pair(a, b)
    error = float(np.linalg.norm((first - second).ravel()))
    return _ratio(error, float(np.linalg.norm(first.ravel())))


def quantize_error(z: npt.ArrayLike, z_hat: npt.ArrayLike) -> float:
    """`‖z - ẑ‖ / ‖z‖` of the kept tokens' latents [T, r], through the quantizer."""
    return relative_l2(z, z_hat)


def dropped_attention(attention: npt.ArrayLike, kept: npt.ArrayLike) -> float:
    """Share of all attention that the dropped tokens had received.

    Args:
        attention: Not negative, [T].
        kept: bool [T].

    Returns:
        0 (all kept, or no attention at all) to 1.

    Raises:
        FrameMalformedError: The shapes differ.
    """
    weights, mask = _pair(attention, kept)
    total = float(weights.sum())
    return min(1.0, max(0.0, _ratio(float(weights[mask == 0].sum()), total)))


def latent_residual(
    x_norm: npt.ArrayLike, z: npt.ArrayLike, reconstruction: npt.ArrayLike
) -> float:
    """Share of the normalised state, as a norm, that its latents do not hold: `‖x - z R‖ / ‖x‖`.

    R is the best linear reconstruction on the calibration data, `(AᵀSA)⁻¹AᵀS` for `z = x A` with
    covariance S. (The span of A is no substitute: reduced-rank regression projects obliquely.)

    Args:
        x_norm: Normalised flat states, [T, d].
        z: Their latents, not quantized, [T, r].
        reconstruction: R, [r, d].

    Returns:
        0 if nothing is lost. About 1 if nothing is kept; more if R is worse than none.

    Raises:
        FrameMalformedError: The shapes do not fit.
    """
    x = np.asarray(x_norm, dtype=np.float64)
    latents = np.asarray(z, dtype=np.float64)
    matrix = np.asarray(reconstruction, dtype=np.float64)
    if (
        x.ndim != 2
        or latents.ndim != 2
        or len(x) != len(latents)
        or matrix.shape != (latents.shape[1], x.shape[1])
    ):
        raise FrameMalformedError(
            f"states {x.shape}, latents {latents.shape} and reconstruction {matrix.shape} "
            "do not fit: expected [tokens, d], [tokens, r] and [r, d]"
        )
    return relative_l2(x, latents @ matrix)


def unfamiliarity(z: npt.ArrayLike, latent_mean: npt.ArrayLike, inv_cov: npt.ArrayLike) -> float:
    """Distance from the calibration statistics: `sqrt(mean_t (z-μ)ᵀ Σ⁻¹ (z-μ) / r)`.

    Args:
        z: [T, r], T >= 1.
        latent_mean: μ, [r].
        inv_cov: Σ⁻¹, [r, r].

    Returns:
        About 1 on pictures like those of the calibration, more on others.

    Raises:
        FrameMalformedError: The shapes do not fit.
    """
    return float(np.sqrt(np.mean(_squares(z, latent_mean, inv_cov))))


def unfamiliarity_of_tokens(
    z: npt.ArrayLike, latent_mean: npt.ArrayLike, inv_cov: npt.ArrayLike
) -> Doubles:
    """Each token's own distance, `sqrt((z-μ)ᵀ Σ⁻¹ (z-μ) / r)`, [T]; arguments: `unfamiliarity`."""
    return np.sqrt(_squares(z, latent_mean, inv_cov))


def _squares(z: npt.ArrayLike, latent_mean: npt.ArrayLike, inv_cov: npt.ArrayLike) -> Doubles:
    """Squared distances of tokens, divided by the rank; 0 where rounding makes one negative."""
    latents = np.asarray(z, dtype=np.float64)
    inverse = np.asarray(inv_cov, dtype=np.float64)
    _check_latents(latents, inverse)
    away = latents - np.asarray(latent_mean, dtype=np.float64)
    squares: Doubles = np.einsum("tr,tr->t", away @ inverse, away) / away.shape[1]
    return np.maximum(squares, 0.0)


def round_trip(x_norm: npt.ArrayLike, again: npt.ArrayLike) -> float:
    """`‖x - x̂‖² / ‖x‖²` for a state that was mapped to the other model and back.

    Args:
        x_norm: Normalised states, any shape.
        again: The states that came back, normalised in the same way, same shape.

    Raises:
        FrameMalformedError: The shapes differ.
    """
    return relative_l2(x_norm, again) ** 2


def cosine(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Mean cosine between the rows (last axis) of two arrays of one shape; 0 for a zero row.

    Raises:
        FrameMalformedError: The shapes differ.
    """
    first, second = _pair(a, b)
    dot = (first * second).sum(axis=-1)
    size = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return float(np.mean(np.divide(dot, size, out=np.zeros_like(dot), where=size > 0)))


def r2(y: npt.ArrayLike, y_hat: npt.ArrayLike) -> float:
    """Share of variance explained: `1 - Σ(y - ŷ)² / Σ(y - ȳ)²`, ȳ per dimension (last axis).

    Args:
        y: The truth, [..., d].
        y_hat: The estimate, same shape.

    Returns:
        1 for a perfect estimate, 0 for the mean; minus infinity for a wrong estimate of a constant.

    Raises:
        FrameMalformedError: The shapes differ.
    """
    truth, estimate = _pair(y, y_hat)
    truth = truth.reshape(-1, truth.shape[-1]) if truth.ndim else truth.reshape(1, 1)
    error = float(((truth - estimate.reshape(truth.shape)) ** 2).sum())
    return 1.0 - _ratio(error, float(((truth - truth.mean(axis=0)) ** 2).sum()))


def _check_latents(latents: Doubles, matrix: Doubles) -> None:
    if latents.ndim != 2 or not latents.size or matrix.shape != (latents.shape[1],) * 2:
        raise FrameMalformedError(
            f"latents {latents.shape} and matrix {matrix.shape} do not fit: "
            "expected [tokens, r] and [r, r]"
        )
