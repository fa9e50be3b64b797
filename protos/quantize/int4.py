"""INT4: two latents per byte, evenly spaced, clipped.

Two's complement nibbles, the low one first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from protos.errors import FrameMalformedError
from protos.quantize.base import Floats, Quantizer, exact_size, in_steps


@dataclass(frozen=True)
class Int4Quantizer(Quantizer):
    """`round(z / step)` clipped to -7..7; -8 is not used."""

    name: ClassVar[str] = "int4"

    def _encode(self, z: Floats, steps: Floats) -> bytes:
        codes = np.clip(np.rint(in_steps(z, steps)), -7, 7).astype(np.int8).reshape(-1)
        nibbles = codes.view(np.uint8) & 15
        if len(nibbles) % 2:
            nibbles = np.append(nibbles, np.uint8(0))
        return (nibbles[0::2] | nibbles[1::2] << 4).tobytes()

    def _decode(self, payload: bytes, tokens: int, rank: int, steps: Floats) -> Floats:
        numbers = tokens * rank
        exact_size(payload, (numbers + 1) // 2)
        packed = np.frombuffer(payload, dtype=np.uint8)
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
        if nibbles[numbers:].any():
            raise FrameMalformedError("the unused last nibble of the payload is not 0")
        codes = nibbles[:numbers].astype(np.int8)
        if (codes == 8).any():
            raise FrameMalformedError("an int4 code of the payload is -8, which is not used")
        codes = np.where(codes > 7, codes - 16, codes)
        decoded: Floats = codes.reshape(tokens, rank).astype(np.float32) * steps
        return decoded
