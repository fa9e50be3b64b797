"""TurboQuant in small: a random rotation, then the best scalar quantizer of each coordinate.

Zandieh et al., "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate",
arXiv:2504.19874, algorithm 1 (the variant for mean squared error). Written here from the paper, not
the authors' code. Coordinates of a rotated unit vector are taken as normal, as the paper does for
all but small dimensions; a vector's norm travels in float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

NORM_BYTES = 2
_ROUNDS = 200


def codebook(bits: int) -> Floats:
    """The `2 ** bits` best levels for a standard normal number (Lloyd 1982, Max 1960)."""
    x = np.linspace(-8, 8, 64001)
    weight = np.exp(-(x**2) / 2)
    count = 1 << bits
    levels = np.linspace(-2, 2, count)
    for _ in range(_ROUNDS):
        cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        mass = np.bincount(cell, weight, count)
        levels = np.bincount(cell, weight * x, count) / mass
    return levels.astype(np.float32)


@dataclass(frozen=True)
class TurboQuant:
    """One setting.

    Attributes:
        bits: bits per coordinate.
        dim: size of the vectors, D.
        seed: seed of the rotation, known to both ends.
    """

    bits: int
    dim: int
    seed: int = 0

    def bytes_of(self, vectors: int) -> int:
        """Bytes that `vectors` vectors take."""
        return (vectors * self.dim * self.bits + 7) // 8 + vectors * NORM_BYTES

    def apply(self, x: Floats) -> Floats:
        """Vectors `[..., D]` after coding and decoding."""
        rotation = self._rotation()
        norm = np.linalg.norm(x, axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
        unit = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
        turned = unit @ rotation * np.float32(self.dim**0.5)
        levels = codebook(self.bits)
        nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, turned)]
        back: Floats = nearest @ rotation.T * (norm / np.float32(self.dim**0.5))
        return back

    def _rotation(self) -> Floats:
        """A random orthogonal matrix `[D, D]`."""
        normal = np.random.default_rng(self.seed).standard_normal((self.dim, self.dim))
        q, r = np.linalg.qr(normal)
        return (q * np.sign(np.diag(r))).astype(np.float32)
