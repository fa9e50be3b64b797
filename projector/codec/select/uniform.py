"""Control: the same even spread for every picture."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from projector.codec.select.base import Scores, Selector, even
from protos.state import KVState

_UNIFORM_STEPS = 64
"""Steps of the recurrence per token; then the positions still missing follow in order."""


@dataclass(frozen=True)
class Uniform(Selector):
    """Control: an even spread over the grid, the same for every picture."""

    name: ClassVar[str] = "uniform"

    def score(self, state: KVState) -> Scores:
        """Additive recurrence over rows and columns (R2 sequence): spread out at every budget."""
        return _spread(state.grid)

    def mass(self, state: KVState) -> Scores:
        """Every token counts the same."""
        return even(state.tokens)


@functools.lru_cache(maxsize=8)
def _spread(grid: tuple[int, int]) -> Scores:
    rows, columns = grid
    tokens = rows * columns
    root = 1.32471795724474602596  # solves x**3 = x + 1; M. Roberts, 2018
    step = np.arange(_UNIFORM_STEPS * tokens)
    row = (rows * ((0.5 + step / root) % 1)).astype(np.int64)
    column = (columns * ((0.5 + step / root**2) % 1)).astype(np.int64)
    place = np.concatenate([row * columns + column, np.arange(tokens)])  # then those not reached
    _, first = np.unique(place, return_index=True)
    score = np.empty(tokens, dtype=np.float32)
    score[np.argsort(first)] = np.arange(tokens, 0, -1)
    score.flags.writeable = False
    return score
