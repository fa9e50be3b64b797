"""Control: tokens drawn at random."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select.base import Scores, Selector, even
from protos.state import KVState


@dataclass(frozen=True)
class Random(Selector):
    """Control: a different draw for every picture, the same for the same picture and seed."""

    seed: int = 0
    name: ClassVar[str] = "random"

    def score(self, state: KVState) -> Scores:
        """Uniform random numbers."""
        content = zlib.crc32(np.ascontiguousarray(state.values).tobytes())
        return np.random.default_rng([self.seed, content]).random(state.tokens, dtype=np.float32)

    def mass(self, state: KVState) -> Scores:
        """Every token counts the same."""
        return even(state.tokens)
