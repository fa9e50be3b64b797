"""Selection by received attention as published, which favours early tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select.base import Scores, Selector
from protos.state import KVState


@dataclass(frozen=True)
class RawFocus(Selector):
    """Plain column sums of the attention, as published (H2O, arXiv:2306.14048).

    Kept for comparison: under a causal mask, more queries see an early token, so it wins.
    """

    name: ClassVar[str] = "raw_focus"

    def score(self, state: KVState) -> Scores:
        """Mean attention per query, times the queries from the token to the end of the picture."""
        seen_by = np.arange(state.tokens, 0, -1, dtype=np.float32)
        raw: Scores = state.attention * seen_by
        return raw
