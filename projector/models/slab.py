"""The cache of a running batch: one buffer for all rows and layers, written in place.

Rows differ in length. Each starts at column 0 without gaps, so a column's number is the token's
position. New rows are appended; when a row leaves, the last row takes its place. The buffer grows
and never shrinks. `cache.py` converts caches outside such a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

Part: TypeAlias = tuple[Tensor, Tensor]
"""Keys (rotated) and values of some tokens of one row, each `[layers, kv_heads, n, head_dim]`."""
_COLUMNS = 32


class Slab:
    """Keys and values of all rows, `[2, layers, rows, kv_heads, columns, head_dim]`.

    Args:
        like: any part of the model's cache, for sizes, dtype and device.
    """

    def __init__(self, like: Part) -> None:
        layers, heads, _, size = like[0].shape
        self._shape = 2, layers, heads, size
        self._held = torch.zeros(
            (2, layers, 0, heads, 0, size), dtype=like[0].dtype, device=like[0].device
        )
        self.lengths: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    def add(self, rows: Sequence[Sequence[Part]], room: int) -> None:
        """Append rows; a row is a sequence of parts.

        Args:
            rows: each row's parts, which are copied.
            room: at least the tokens by which the longest row will grow.
        """
        first = len(self.lengths)
        lengths = [sum(keys.shape[2] for keys, _ in parts) for parts in rows]
        self._reserve(first + len(rows), max(lengths) + room)
        for row, parts in enumerate(rows, first):
            start = 0
            for keys, values in parts:
                into = self._held[:, :, row, :, start : start + keys.shape[2]]
                into[0].copy_(keys)
                into[1].copy_(values)
                start += keys.shape[2]
        self.lengths += lengths

    def cache(self, first: int, tokens: int) -> tuple[Any, Tensor, Tensor]:
        """A transformers cache over the rows from `first` on; it writes their next tokens in place.

        Returns:
            The cache; the mask, bool `[rows, 1, tokens, columns]`; the positions `[rows, tokens]`.
        """
        lengths = self.lengths[first:]
        self._reserve(len(self.lengths), max(lengths) + tokens)
        device = self._held.device
        starts = torch.tensor(lengths, device=device)[:, None]
        places = starts + torch.arange(tokens, device=device)
        width = -(-(max(lengths) + tokens) // _COLUMNS) * _COLUMNS
        seen = torch.arange(width, device=device) <= places[:, :, None]
        held = self._held[:, :, first : len(self.lengths), :, :width]
        rows = torch.arange(len(lengths), device=device)[:, None].expand(-1, tokens)
        return Cache(layers=_layers(held, rows, places)), seen[:, None], places

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            length = self.lengths[row] = self.lengths[last]
            with torch.inference_mode():
                self._held[:, :, row, :, :length] = self._held[:, :, last, :, :length]
        self.lengths.pop()

    def _reserve(self, rows: int, columns: int) -> None:
        """Grow the buffer, filled with zeros: a masked NaN would still spread through attention."""
        _, _, had_rows, _, had_columns, _ = self._held.shape
        if rows <= had_rows and columns <= had_columns:
            return
        rows = max(rows, had_rows if rows <= had_rows else 2 * had_rows)
        columns = max(-(-columns // _COLUMNS) * _COLUMNS, had_columns)
        two, layers, heads, size = self._shape
        grown = self._held.new_zeros((two, layers, rows, heads, columns, size))
        used = len(self.lengths)
        if used:
            grown[:, :, :used, :, :had_columns] = self._held[:, :, :used]
        self._held = grown


class _Layer(CacheLayerMixin):
    """One layer of some rows, as an attention layer sees it.

    Args:
        keys: `[rows, kv_heads, columns, head_dim]`, written to.
        values: as the keys.
        rows: the row of each new token, `[rows, tokens]`.
        places: its column, `[rows, tokens]`.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, places: Tensor) -> None:
        self.keys, self.values = self._keys, self._values = keys, values
        self._rows, self._places = rows, places
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffer exists already."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens; returns all keys and values of the rows."""
        self._keys[self._rows, :, self._places] = key_states.transpose(1, 2)
        self._values[self._rows, :, self._places] = value_states.transpose(1, 2)
        return self._keys, self._values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of columns, and the first one."""
        return self._keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Columns before the new tokens, in the longest row."""
        return self._keys.shape[2] - self._places.shape[1]

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1


def _layers(held: Tensor, rows: Tensor, places: Tensor) -> Any:
    keys, values = held.unbind(0)
    return [
        _Layer(key, value, rows, places)
        for key, value in zip(keys.unbind(0), values.unbind(0), strict=True)
    ]
