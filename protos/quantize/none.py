"""No quantization: little-endian float32. The reference that other codecs are compared with.

The steps are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from protos.quantize.base import Floats, Quantizer, exact_size


@dataclass(frozen=True)
class NoQuantizer(Quantizer):
    """float32 little endian, 4 bytes per latent."""

    name: ClassVar[str] = "none"

    def _encode(self, z: Floats, steps: Floats) -> bytes:
        return z.astype("<f4").tobytes()

    def _decode(self, payload: bytes, tokens: int, rank: int, steps: Floats) -> Floats:
        exact_size(payload, 4 * tokens * rank)
        return np.frombuffer(payload, dtype="<f4").reshape(tokens, rank).astype(np.float32)
