"""FP8 E4M3 with one scale per token: the high-rate codec for tokens that differ in size.

Scales are little-endian float16, 2 bytes a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from protos.errors import FrameMalformedError, NonFiniteError
from protos.quantize.base import Floats, Quantizer, exact_size, in_steps
from protos.quantize.fp8_e4m3 import MAX, VALUES, to_fp8

_SCALE_BYTES = 2
_LEAST_SCALE = np.float32(2.0**-14)
"""The smallest normal float16."""
_MOST_SCALE = np.float32(65504.0)


@dataclass(frozen=True)
class Fp8TokenQuantizer(Quantizer):
    """T float16 scales, then one E4M3FN byte of `z / (step * scale)` per latent.

    A token's scale takes its largest latent to 448; a scale beyond float16's range saturates.
    """

    name: ClassVar[str] = "fp8_e4m3_token"

    def _encode(self, z: Floats, steps: Floats) -> bytes:
        levels = in_steps(z, steps)
        size = np.abs(levels).max(axis=1, initial=0.0, keepdims=True) / np.float32(MAX)
        # Rounded up, so that the largest latent does not saturate.
        held = np.clip(size, _LEAST_SCALE, _MOST_SCALE).astype("<f2")
        held = np.where(held < size, np.nextafter(held, np.float16(_MOST_SCALE)), held)
        scales = held.astype("<f2")
        codes = to_fp8(levels / scales.astype(np.float32))
        return bytes(scales.tobytes() + codes.tobytes())

    def _decode(self, payload: bytes, tokens: int, rank: int, steps: Floats) -> Floats:
        exact_size(payload, tokens * (_SCALE_BYTES + rank))
        scales = np.frombuffer(payload, dtype="<f2", count=tokens).astype(np.float32)
        if not np.isfinite(scales).all():
            raise NonFiniteError("a token's FP8 scale is NaN or infinite")
        if not (scales >= _LEAST_SCALE).all():
            raise FrameMalformedError(f"a token's FP8 scale is below {_LEAST_SCALE:g}")
        values = VALUES[np.frombuffer(payload, dtype=np.uint8, offset=_SCALE_BYTES * tokens)]
        if np.isnan(values).any():
            raise NonFiniteError("an FP8 byte of the payload is NaN (0x7f or 0xff)")
        decoded: Floats = values.reshape(tokens, rank) * scales[:, None] * steps
        return decoded
