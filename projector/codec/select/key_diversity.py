"""Selection of tokens whose keys differ most from the mean key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select.base import Floats, Scores, Selector
from protos.state import KVState


@dataclass(frozen=True)
class KeyDiversity(Selector):
    """Tokens whose keys point away from the picture's mean key (KeyDiff, arXiv:2504.15364)."""

    name: ClassVar[str] = "key_diversity"

    def score(self, state: KVState) -> Scores:
        """1 - cosine to the mean of the unit keys, mean over layers and heads: 0 to 2."""
        unit = _unit(state.keys)
        anchor = _unit(unit.mean(axis=2, keepdims=True))
        cosine = np.einsum("lhtd,lhd->lht", unit, anchor[:, :, 0])
        away: Scores = np.maximum(1 - cosine.mean(axis=(0, 1)), 0).astype(np.float32)
        return away


def _unit(vectors: Floats) -> Floats:
    """Scale vectors to length 1 along the last axis; zeros stay zeros."""
    size = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Floats = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
    return unit
