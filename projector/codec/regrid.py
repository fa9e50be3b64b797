"""A picture's tokens on another grid: each is a weighted sum of the small model's own (NumPy)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from projector.codec.arrays import Floats, check_arrays
from protos.errors import BundleFormatError
from protos.layout import MAX_GRID_SIDE
from protos.state import KVState


@dataclass(frozen=True, eq=False)
class Regrid:
    """From the small model's grid to the one whose tokens travel.

    Attributes:
        weights: `[N, N_source]`, row-major on both sides.
        grid: rows and columns of the tokens that travel.

    Raises:
        BundleFormatError: the weights do not fit the grid, or are not finite.
    """

    weights: Floats
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        shape = self.weights.shape if self.weights.ndim == 2 else (0, 0)
        sides = [type(n) is int and 0 < n <= MAX_GRID_SIDE for n in self.grid]
        if len(sides) != 2 or not all(sides) or math.prod(self.grid) != shape[0] or not shape[1]:
            raise BundleFormatError(f"encoder: grid weights {shape} to a grid of {self.grid}")
        if shape[0] == shape[1]:
            raise BundleFormatError("encoder: grid weights between grids of equally many tokens")
        check_arrays("encoder", {"regrid": self.weights}, {"regrid": shape})

    @property
    def source_tokens(self) -> int:
        """Tokens of the small model."""
        return int(self.weights.shape[1])

    @cached_property
    def _shares(self) -> npt.NDArray[np.float64]:
        """Which share of a source token's attention goes to which token, `[N, N_source]`."""
        size = np.abs(self.weights).astype(np.float64)
        total = size.sum(axis=0)
        return np.where(total > 0, size / np.where(total > 0, total, 1.0), 1 / len(size))

    def of(self, state: KVState) -> KVState:
        """A picture's state on the grid whose tokens travel; one that is on it is returned."""
        if state.tokens != self.source_tokens:
            return state
        keys, values = (
            np.einsum("mn,lhnd->lhmd", self.weights, part, optimize=True)
            for part in (state.keys, state.values)
        )
        return KVState(
            keys,
            values,
            np.arange(len(self.weights)),
            self.grid,
            (self._shares @ state.attention).astype(np.float32),
        )
