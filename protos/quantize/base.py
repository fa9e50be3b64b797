"""The base of all quantizers; it checks shapes, steps and numbers before a codec sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protos.errors import FrameMalformedError, FrameTruncatedError, NonFiniteError

Floats = npt.NDArray[np.float32]

MAX_NUMBERS = 1 << 26
"""Most latents of one frame that a decoder will allocate, whatever the header says."""


class Quantizer(ABC):
    """Latents to bytes and back. Subclasses implement `_encode` and `_decode`.

    Attributes:
        name: In operating points, in `NegotiateRequest.codecs` and in `QUANTIZERS`.
    """

    name: ClassVar[str]

    def encode(self, z: npt.ArrayLike, steps: npt.ArrayLike) -> bytes:
        """Quantize the latents of the kept tokens.

        Args:
            z: [T, r].
            steps: Step (or scale) of each latent, above 0, [r].

        Returns:
            The payload.

        Raises:
            NonFiniteError: A latent or a step is NaN or infinite.
            FrameMalformedError: The shapes differ, a step is not above 0, or a latent is outside
                the codec's range.
        """
        latents = np.asarray(z, dtype=np.float32)
        if latents.ndim != 2:
            raise FrameMalformedError(f"latents must be [tokens, rank], not {latents.shape}")
        finite(latents, "a latent")
        return self._encode(latents, _checked(steps, latents.shape[1]))

    def decode(self, payload: bytes, tokens: int, rank: int, steps: npt.ArrayLike) -> Floats:
        """Read back what `encode` wrote; every byte is checked.

        Args:
            payload: As received, without the bitmap.
            tokens: Kept tokens, T.
            rank: Latents per token, r.
            steps: As for `encode`, [r].

        Returns:
            float32 [T, r], finite.

        Raises:
            FrameTruncatedError: The payload is too short.
            FrameMalformedError: It is too long or not of the codec's form.
            NonFiniteError: A latent or a step is NaN or infinite.
        """
        if tokens < 1 or rank < 1 or tokens * rank > MAX_NUMBERS:
            raise FrameMalformedError(f"{tokens} tokens of {rank} latents cannot be decoded")
        checked = _checked(steps, rank)
        with np.errstate(over="ignore"):
            return finite(self._decode(payload, tokens, rank, checked), "a decoded latent")

    @abstractmethod
    def _encode(self, z: Floats, steps: Floats) -> bytes:
        """`encode`, with everything checked."""

    @abstractmethod
    def _decode(self, payload: bytes, tokens: int, rank: int, steps: Floats) -> Floats:
        """`decode`, with steps and counts checked and the payload not."""


def finite(array: Floats, what: str) -> Floats:
    """Return `array`, or raise NonFiniteError naming `what` if any of it is NaN or infinite."""
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{what} is NaN or infinite")
    return array


def exact_size(payload: bytes, expected: int) -> None:
    """Require a payload of `expected` bytes, raising the error that says which way it is wrong."""
    if len(payload) != expected:
        kind = FrameTruncatedError if len(payload) < expected else FrameMalformedError
        raise kind(f"payload of {len(payload)} bytes, its tokens and rank need {expected}")


def in_steps(z: Floats, steps: Floats) -> Floats:
    """`z / steps`; infinite if that overflows, which the codecs clip or refuse."""
    with np.errstate(over="ignore"):
        quotient: Floats = z / steps
    return quotient


def _checked(steps: npt.ArrayLike, rank: int) -> Floats:
    checked = np.asarray(steps, dtype=np.float32)
    if checked.shape != (rank,):
        raise FrameMalformedError(f"steps are {checked.shape}, {rank} latents need ({rank},)")
    finite(checked, "a step")
    if not (checked > 0).all():
        raise FrameMalformedError("a step is not above 0")
    return checked
