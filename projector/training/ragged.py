"""States of texts of different lengths, read from shards only when indexed.

A batch is as wide as its longest row; tokens past a shorter row's end are NaN in all their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.errors import CorpusError

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Ragged:
    """n rows of `[tokens, d]`, indexed like a float16 array `[n, longest, d]`.

    Attributes:
        shards: open tensors `[tokens of all rows, d]`, as `safetensors` slices.
        rows: shard, first and past-the-last token of each row, `[n, 3]`.
        width: d.
    """

    shards: Sequence[Any]
    rows: npt.NDArray[np.int64]
    width: int

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, `[n]`."""
        lengths: npt.NDArray[np.int64] = self.rows[:, 2] - self.rows[:, 1]
        return lengths

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of all rows in one batch."""
        return len(self), int(self.lengths.max(initial=0)), self.width

    def part(self, index: Any) -> Ragged:
        """Some of the rows, still unread."""
        return Ragged(self.shards, self.rows[index], self.width)

    def __getitem__(self, index: Any) -> Halves:
        """Some of the rows, `[B, longest of them, d]`.

        Raises:
            CorpusError: a shard holds NaN or infinity.
        """
        part = self.part(index)
        batch = np.full(part.shape, np.nan, dtype=np.float16)
        for out, (shard, begin, end) in zip(batch, part.rows.tolist(), strict=True):
            out[: end - begin] = self.shards[shard][begin:end]
        if np.isfinite(batch).all(axis=-1).sum() != part.lengths.sum():
            raise CorpusError("a shard of the corpus holds NaN or infinity; remove it")
        return batch


def present(states: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which tokens of a batch `[B, N, d]` are there, `[B, N]`."""
    there: npt.NDArray[np.bool_] = ~np.isnan(states[..., 0])
    return there
