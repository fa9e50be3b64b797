"""A selector of one's own: importing this module makes it known by its name."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select import SELECTORS
from projector.codec.select.base import Scores, Selector
from protos.state import KVState


@dataclass(frozen=True)
class Centre(Selector):
    """Keeps the tokens nearest the middle of the picture, where an aimed camera sees its object."""

    name: ClassVar[str] = "centre"

    def score(self, state: KVState) -> Scores:
        """1 in the middle, less with the distance from it, `[tokens]`."""
        places = np.indices(state.grid).reshape(2, -1).T
        away = np.linalg.norm(places - places.mean(axis=0), axis=1)
        score: Scores = (1 / (1 + away)).astype(np.float32)
        return score


SELECTORS[Centre.name] = Centre
