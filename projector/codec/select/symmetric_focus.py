"""Selection by received attention, corrected for how many queries see a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from projector.codec.select.base import Scores, Selector
from protos.state import KVState


@dataclass(frozen=True)
class SymmetricFocus(Selector):
    """The attention that a token receives, divided by the number of queries that can see it."""

    name: ClassVar[str] = "symmetric_focus"

    def score(self, state: KVState) -> Scores:
        """Received attention, as the model's prefill measured it."""
        return state.attention
