"""Frames of texts: one token per token of the text, and no delta frames.

A text has one token per token of the target's tokenizer. A token that is not sent has the same
source token as the one before it, so the kept bitmap is the alignment of the two tokenizers.
"""

from __future__ import annotations

import numpy as np

from projector.codec.arrays import Floats, Mask
from protos.points import OperatingPoint


def sent_whole(point: OperatingPoint) -> bool:
    """Whether an operating point sends every source token, as texts need."""
    return point.kind != "picture" and not point.tokens and not point.quiet


def repeat(z_hat: Floats, kept: Mask) -> Floats:
    """Latents of all tokens `[N, r]` from those sent `[T_kept, r]`; others repeat the last one."""
    repeated: Floats = z_hat[np.cumsum(kept) - 1]
    return repeated
