"""Selection by received attention times the size of the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select.base import Scores, Selector
from protos.state import KVState


@dataclass(frozen=True)
class ValueAware(Selector):
    """Received attention times the length of the value that it moves (VATP, arXiv:2406.12335)."""

    name: ClassVar[str] = "value_aware"

    def score(self, state: KVState) -> Scores:
        """Attention times the mean L1 norm of the token's values."""
        moved: Scores = state.attention * np.abs(state.values).sum(axis=-1).mean(axis=(0, 1))
        return moved
