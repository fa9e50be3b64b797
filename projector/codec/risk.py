"""The risk: the probability that the frame's answer differs from the picture's (NumPy).

It is one logistic regression over four distortion figures, the question's words, the small model's
confidence in its own answer, and moments of the picture's latents. Calibration learns two
(`projector/calibration/learn_risk.py`): the device's, which the encoder carries, and the service's,
which sees only the frame: the decoded latents, the figures and the question.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from protos.distortion import Distortion
from protos.errors import BundleFormatError

Floats = npt.NDArray[np.float32]

WORDS = 128
"""Buckets that a question's words are hashed into; two words may share one."""
_FIGURES, _CERTAINTY, _MOMENTS = 4, 4, 4
_LEAST = 1e-4


def features(
    figures: Distortion, question: str, first_token: Floats | None, moved: Floats
) -> Floats:
    """The features of the risk, `[136 + 4 r]`; NaN for unknown ones.

    Args:
        figures: the frame's distortion.
        question: empty if unknown.
        first_token: the small model's distribution over its vocabulary for the first token of its
            own answer; None if it was not asked.
        moved: latents of all tokens before quantization, minus the encoder's centre, `[T, r]`.
    """
    known = words_of(question), certainty_of(first_token)
    found: Floats = np.concatenate([losses_of(figures), *known, moments_of(moved)]).astype(
        np.float32
    )
    return found


def certainty_of(first_token: Floats | None) -> npt.NDArray[np.float64]:
    """Four features of the distribution of an answer's first token, `[V]`; NaN without one."""
    certainty = np.full(_CERTAINTY, np.nan)
    if first_token is not None:
        second, first = np.partition(first_token, -2)[-2:].astype(np.float64)
        spread = -np.sum(first_token * np.log(np.maximum(first_token, 1e-9)), dtype=np.float64)
        certainty[:] = np.log(first + _LEAST), np.log(second + _LEAST), spread, first - second
    return certainty


def received_features(figures: Distortion, question: str, moved: Floats) -> Floats:
    """The features of the service's risk, `[136 + 4 r]`; features that only the device knows are 0.

    Args:
        figures: the frame's distortion.
        question: not empty.
        moved: latents of the kept tokens as decoded, minus the encoder's centre, `[T_kept, r]`.
    """
    found = features(figures, question, None, moved)
    found[_FIGURES + WORDS :][:_CERTAINTY] = 0.0
    return found


def moments_of(moved: Floats) -> Floats:
    """Mean, standard deviation, maximum and minimum of each latent: `[T, r]` to `[4 r]`."""
    found: Floats = np.concatenate(
        [moved.mean(axis=0), moved.std(axis=0), moved.max(axis=0), moved.min(axis=0)]
    )
    return found


def words_of(question: str) -> npt.NDArray[np.float64]:
    """Which buckets the question's words fall into, 0 or 1; NaN if it is unknown."""
    words = np.full(WORDS, np.nan if not question else 0.0)
    for word in question.split():
        words[zlib.crc32(word.encode()) % WORDS] = 1.0
    return words


def losses_of(figures: Distortion) -> Floats:
    """The first four features, which depend on the frame; the others depend on the question."""
    losses = (
        figures.quantize,
        figures.dropped_attention,
        np.log(max(figures.latent_residual, _LEAST)),
        np.log(max(figures.unfamiliarity, _LEAST)),
    )
    return np.array(losses, dtype=np.float32)


def feature_count(rank: int) -> int:
    """Number of features for latents of rank `rank`."""
    return _FIGURES + WORDS + _CERTAINTY + _MOMENTS * rank


@dataclass(frozen=True, eq=False)
class RiskModel:
    """`P(disagree) = 1 / (1 + exp(-(bias + weights . features)))`.

    Attributes:
        mean: mean features at calibration, used for unknown ones, `[F]`.
        weights: `[F]`.
        bias: intercept.
        limit: above this risk, calibration advises the fallback, 0..1.

    Raises:
        BundleFormatError: different shapes, numbers that are not finite, a limit out of bounds.
    """

    mean: Floats
    weights: Floats
    bias: float
    limit: float

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.weights.shape:
            raise BundleFormatError(
                f"risk: means {self.mean.shape} and weights {self.weights.shape} do not fit"
            )
        if self.mean.dtype != np.float32 or self.weights.dtype != np.float32:
            raise BundleFormatError("risk: means and weights are float32")
        finite = np.isfinite(self.mean).all() and np.isfinite(self.weights).all()
        if not finite or not np.isfinite(self.bias) or not 0 <= self.limit <= 1:
            raise BundleFormatError("risk: a number is not finite, or the limit not in 0..1")

    def risk(self, found: Floats) -> Floats:
        """Probability of a different answer, for features `[..., F]`."""
        known = np.where(np.isfinite(found), found, self.mean).astype(np.float64)
        score = np.clip(known @ self.weights.astype(np.float64) + self.bias, -50.0, 50.0)
        chance: Floats = (1.0 / (1.0 + np.exp(-score))).astype(np.float32)
        return chance

    def moments_score(self, moved: Floats) -> float:
        """The part of the score that comes from moments of the latents `[T, r]`, in the engine."""
        weights = self.weights[_FIGURES + WORDS + _CERTAINTY :].astype(np.float64)
        return float(moments_of(moved).astype(np.float64) @ weights)

    def of_received(self, figures: Distortion, question: str, moments_score: float) -> float:
        """The service's risk, from a frame's `moments_score`.

        Args:
            figures: the frame's distortion.
            question: empty if unknown.
            moments_score: score of the decoded latents.
        """
        rest = np.concatenate([losses_of(figures), words_of(question), np.full(_CERTAINTY, np.nan)])
        count = len(rest)
        known = np.where(np.isfinite(rest), rest, self.mean[:count])
        score = known @ self.weights[:count].astype(np.float64) + self.bias + moments_score
        return float(1.0 / (1.0 + np.exp(-np.clip(score, -50.0, 50.0))))

    def to_bytes(self) -> bytes:
        """A safetensors blob."""
        blob: bytes = save_tensors(self.to_arrays())
        return blob

    @classmethod
    def from_bytes(cls, blob: bytes) -> RiskModel:
        """Read what `to_bytes` returned.

        Raises:
            BundleFormatError: it is not such a blob.
        """
        try:
            arrays = load_tensors(blob)
        except (SafetensorError, ValueError, KeyError) as error:
            raise BundleFormatError(f"risk: not a safetensors blob ({error})") from error
        return cls.from_arrays(arrays)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The encoder's tensors for the risk."""
        constants = np.array([self.bias, self.limit], dtype=np.float32)
        return {"mean": self.mean, "weights": self.weights, "constants": constants}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> RiskModel:
        """Read what `to_arrays` returned.

        Raises:
            BundleFormatError: the arrays are not exactly those.
        """
        if set(arrays) != {"mean", "weights", "constants"} or arrays["constants"].shape != (2,):
            raise BundleFormatError(f"risk: holds {sorted(arrays)}")
        bias, limit = (float(value) for value in arrays["constants"])
        return cls(arrays["mean"], arrays["weights"], bias, limit)
