"""A running batch of greedy answers: rows join after their question's prefill, leave when done.

Rows of different lengths share one cache. Each sees only its own columns (a mask says which) and
carries its own positions. Columns that no row sees any more are cut out. Only token ids, caches and
masks here: no jobs, frames or words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from projector.models import cache as kv
from projector.models.cache import LayerCache
from projector.models.frozen import FrozenModel

Owner = TypeVar("Owner")


@dataclass
class Row(Generic[Owner]):
    """One answer being made.

    Attributes:
        owner: what the answer belongs to.
        limit: most tokens to make.
        position: the next token's position in the model's sequence.
        tokens: made so far, without the end token.
        done: it ended, by the end token or at its limit.
        fresh: the last call made a token for it (the end token does not count).
    """

    owner: Owner
    limit: int
    position: int
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    fresh: bool = False


class RunningBatch(Generic[Owner]):
    """The rows being made.

    Args:
        model: its weights are not changed.
    """

    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        self._layers: list[LayerCache] = []
        self._seen = torch.zeros(0, 0, dtype=torch.bool, device=model.device)  # [rows, columns]
        self.rows: list[Row[Owner]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def join(
        self,
        scenes: Sequence[LayerCache],
        questions: Sequence[Sequence[int]],
        owners: Sequence[Owner],
        limits: Sequence[int],
    ) -> list[Row[Owner]]:
        """Prefill some questions as a group and make each one's first token.

        Args:
            scenes: per layer keys and values `[group, kv_heads, prefix + N, head_dim]`; never
                written to.
            questions: token ids that follow the picture, one list per row.
            owners: one per row.
            limits: most tokens, one per row, each at least 1.

        Returns:
            The new rows, each with its first token (unless that ended it).
        """
        device = self._model.device
        group, held = len(questions), scenes[0][0].shape[2]
        lengths = torch.tensor([len(question) for question in questions], device=device)
        width = int(lengths.max())
        ids = torch.zeros(group, width, dtype=torch.long, device=device)
        for index, question in enumerate(questions):
            ids[index, : len(question)] = torch.tensor(list(question), device=device)
        columns = torch.arange(held + width, device=device)
        causal = columns[None, :] <= columns[held:, None]  # [width, held + width]
        with torch.inference_mode():
            cache = kv.new_cache(scenes)
            positions = columns[held:].expand(group, -1)
            hidden = self._model.run(ids, cache, causal[None, None], positions)
            last = hidden[torch.arange(group, device=device), lengths - 1]
            first = self._model.logits(last).argmax(dim=-1).tolist()
            self._merge(kv.read_cache(cache), columns < held + lengths[:, None])
        joined = [
            Row(owner, limit, held + len(question))
            for owner, limit, question in zip(owners, limits, questions, strict=True)
        ]
        for row, token in zip(joined, first, strict=True):
            self._take(row, token)
        self.rows += joined
        return joined

    def step(self) -> list[Row[Owner]]:
        """Make one more token for every row; returns the rows (some of them may be done now)."""
        device = self._model.device
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
        positions = torch.tensor([[row.position] for row in self.rows], device=device)
        ones = torch.ones(len(self.rows), 1, dtype=torch.bool, device=device)
        self._seen = torch.cat((self._seen, ones), dim=1)
        with torch.inference_mode():
            cache = kv.new_cache(self._layers)
            seen = self._seen[:, None, None, :]
            hidden = self._model.run(tokens, cache, seen, positions, prompt=False)
            made = self._model.logits(hidden[:, -1]).argmax(dim=-1).tolist()
            self._layers = kv.read_cache(cache)
        for row, token in zip(self.rows, made, strict=True):
            row.position += 1
            self._take(row, token)
        return list(self.rows)

    def leave(self) -> None:
        """Free the rows that are done, and the columns that only they saw."""
        stay = [index for index, row in enumerate(self.rows) if not row.done]
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in stay]
        if not stay:
            self._layers, self._seen = [], self._seen[:0, :0]
            return
        rows = torch.tensor(stay, device=self._model.device)
        seen = self._seen[rows]
        columns = seen.any(dim=0).nonzero().squeeze(1)
        self._seen = seen[:, columns]
        self._layers = [
            (key[rows][:, :, columns], value[rows][:, :, columns]) for key, value in self._layers
        ]

    def _take(self, row: Row[Owner], token: int) -> None:
        row.fresh = token not in self._model.eos_ids
        if not row.fresh:
            row.done = True
            return
        row.tokens.append(token)
        row.done = len(row.tokens) >= row.limit

    def _merge(self, layers: list[LayerCache], seen: Tensor) -> None:
        """Add rows; the shorter cache is padded on the right with columns its rows never see."""
        if not self.rows:
            self._layers, self._seen = layers, seen
            return
        width = max(self._seen.shape[1], seen.shape[1])
        self._seen = torch.cat((_wider(self._seen, width, 1), _wider(seen, width, 1)))
        self._layers = [
            (
                torch.cat((_wider(old_key, width, 2), _wider(key, width, 2))),
                torch.cat((_wider(old_value, width, 2), _wider(value, width, 2))),
            )
            for (old_key, old_value), (key, value) in zip(self._layers, layers, strict=True)
        ]


def _wider(tensor: Tensor, width: int, dim: int) -> Tensor:
    missing = width - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat((tensor, tensor.new_zeros(shape)), dim=dim)
