"""FP8 E4M3 in software: one byte per latent, no tables, always accepted.

The bit layout is E4M3FN (Micikevicius et al., arXiv:2209.05433, table 1): 4 exponent bits with bias
7, 3 mantissa bits, no infinities, NaN at 0x7f and 0xff, largest number 448.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protos.errors import NonFiniteError
from protos.quantize.base import Floats, Quantizer, exact_size, in_steps

MAX = 448.0
_SMALLEST_NORMAL = np.float32(2.0**-6)
_SUBNORMAL_STEPS = np.float32(2.0**9)
# Drops 20 of float32's 23 mantissa bits and moves the exponent's bias from 127 to 7.
_DROPPED_BITS = np.uint32(20)
_ROUND = np.uint32((1 << 19) - 1)
_REBIAS = np.uint32((127 - 7) << 3)


def to_fp8(x: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Round to nearest even, saturating at 448.

    Args:
        x: Any shape; not NaN. Infinities saturate, so check for them first.

    Returns:
        E4M3FN bytes, uint8 of the same shape.
    """
    array = np.asarray(x, dtype=np.float32)
    size = np.minimum(np.abs(array), np.float32(MAX))
    bits = size.view(np.uint32)
    rounded = bits + _ROUND + ((bits >> _DROPPED_BITS) & np.uint32(1))
    normal = (rounded >> _DROPPED_BITS) - _REBIAS
    subnormal = np.rint(size * _SUBNORMAL_STEPS).astype(np.uint32)
    code: npt.NDArray[np.uint8] = np.where(size < _SMALLEST_NORMAL, subnormal, normal).astype(
        np.uint8
    )
    code[np.signbit(array)] |= 128
    return code


def _values() -> Floats:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[[0x7F, 0xFF]] = np.nan
    values[128:] *= -1
    return values.astype(np.float32)


VALUES: Floats = _values()
"""The number that each of the 256 bytes stands for."""


@dataclass(frozen=True)
class Fp8E4M3Quantizer(Quantizer):
    """One E4M3FN byte of `z / step` per latent; saturates at 448 steps."""

    name: ClassVar[str] = "fp8_e4m3"

    def _encode(self, z: Floats, steps: Floats) -> bytes:
        return to_fp8(in_steps(z, steps)).tobytes()

    def _decode(self, payload: bytes, tokens: int, rank: int, steps: Floats) -> Floats:
        exact_size(payload, tokens * rank)
        values = VALUES[np.frombuffer(payload, dtype=np.uint8)]
        if np.isnan(values).any():
            raise NonFiniteError("an FP8 byte of the payload is NaN (0x7f or 0xff)")
        decoded: Floats = values.reshape(tokens, rank) * steps
        return decoded
