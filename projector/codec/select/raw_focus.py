"""Selection by received attention as published: early tokens are favoured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select.base import Scores, Selector
from protos.state import KVState


@dataclass(frozen=True)
class RawFocus(Selector):
    """Plain column sums of the attention, as published (H2O, arXiv:2306.14048).

    Kept to compare with: under a causal mask early tokens are seen by more queries and win.
    """

    name: ClassVar[str] = "raw_focus"

    def score(self, state: KVState) -> Scores:
        """The mean per query times the picture's queries from the token itself on."""
        seen_by = np.arange(state.tokens, 0, -1, dtype=np.float32)
        raw: Scores = state.attention * seen_by
        return raw
