"""Memory for what the engine holds: a few big blocks, cut into pages of one shape.

Scenes live for minutes and the tensors of a step for milliseconds. Mixed in one heap, they leave
holes that nothing fits: an engine that held 268 MB grew past 4 GB. Here a page never goes back to
the heap. It is written, given back and written again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK_BYTES = 16 << 20


class PagePool:
    """Pages of one shape and dtype; it grows by a block when none is free, and never shrinks.

    Args:
        shape: of a page.
        dtype: of a page.
        device: where the blocks are.
        most_bytes: a block is no larger than this, or than 16 MiB; one page at least.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        most_bytes: int = _BLOCK_BYTES,
    ) -> None:
        self._shape, self._dtype, self._device = tuple(shape), dtype, device
        self.page_bytes = math.prod(shape) * dtype.itemsize
        self._per_block = max(1, min(most_bytes, _BLOCK_BYTES) // max(1, self.page_bytes))
        self._blocks: list[Tensor] = []
        self._free: list[int] = []

    @property
    def bytes(self) -> int:
        """Memory of all blocks, used or not."""
        return len(self._blocks) * self._per_block * self.page_bytes

    def take(self, count: int) -> list[int]:
        """Take pages; returns their numbers. They are the caller's until `give`, and not zeroed."""
        while len(self._free) < count:
            first = len(self._blocks) * self._per_block
            block = torch.empty(
                (self._per_block, *self._shape), dtype=self._dtype, device=self._device
            )
            self._blocks.append(block)
            self._free[:0] = range(first + self._per_block - 1, first - 1, -1)
        rest = len(self._free) - count
        taken = self._free[rest:][::-1]
        del self._free[rest:]
        return taken

    def give(self, pages: Sequence[int]) -> None:
        """Take pages back; they are the next to be taken again."""
        self._free += reversed(pages)

    def __getitem__(self, page: int) -> Tensor:
        """One page, to be read or written."""
        block, place = divmod(page, self._per_block)
        return self._blocks[block][place]
