"""INT8: one two's complement byte per latent, evenly spaced, clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from protos.errors import FrameMalformedError
from protos.quantize.base import Floats, Quantizer, exact_size, in_steps


@dataclass(frozen=True)
class Int8Quantizer(Quantizer):
    """`round(z / step)` clipped to -127..127; -128 is not used."""

    name: ClassVar[str] = "int8"

    def _encode(self, z: Floats, steps: Floats) -> bytes:
        return np.clip(np.rint(in_steps(z, steps)), -127, 127).astype(np.int8).tobytes()

    def _decode(self, payload: bytes, tokens: int, rank: int, steps: Floats) -> Floats:
        exact_size(payload, tokens * rank)
        codes = np.frombuffer(payload, dtype=np.int8)
        if (codes == -128).any():
            raise FrameMalformedError("an int8 code of the payload is -128, which is not used")
        decoded: Floats = codes.reshape(tokens, rank).astype(np.float32) * steps
        return decoded
