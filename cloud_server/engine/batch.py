"""A running batch of greedy answers: rows join after their question's prefill, leave when done.

Rows of different lengths share one buffer (`projector/models/slab.py`). This module handles only
token ids, caches and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from cloud_server.engine.values import remembering
from projector.models.frozen import FrozenModel, padded
from projector.models.slab import Part, Slab

Owner = TypeVar("Owner")
_LEAST_ROWS = 8
"""Fewer rows are padded: MKL sums a few rows in another order than many."""
_ROOM = 64
"""Columns reserved for an answer; for a longer one the buffer grows."""


@dataclass
class Row(Generic[Owner]):
    """One answer being made.

    Attributes:
        owner: what the answer belongs to.
        limit: most tokens to make.
        tokens: made so far, without the end token.
        done: it ended, by the end token or at its limit.
        fresh: the last call made a token for it (the end token does not count).
        added: what its memory adds at each place of the answer (`values.py`); None: nothing.
    """

    owner: Owner
    limit: int
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    fresh: bool = False
    added: Tensor | None = None


class RunningBatch(Generic[Owner]):
    """The rows being made.

    Args:
        model: its weights are not changed.
    """

    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        self._slab: Slab | None = None
        self.rows: list[Row[Owner]] = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Columns in a step: those of the longest row."""
        return self._slab.width if self._slab is not None else 0

    def join(
        self,
        contexts: Sequence[Sequence[Part]],
        questions: Sequence[Sequence[int]],
        owners: Sequence[Owner],
        limits: Sequence[int],
        on_first: Callable[[Tensor], None] = lambda _: None,
        added: Sequence[Tensor | None] = (),
    ) -> list[Row[Owner]]:
        """Prefill some questions as a group and make each one's first token.

        Args:
            contexts: each row's parts in order, such as the prefix and a scene; never written to.
            questions: token ids that follow the picture, one list per row.
            owners: one per row.
            limits: most tokens, one per row, each at least 1.
            on_first: gets the logits of the first tokens, `[rows, vocabulary]`.
            added: as `Row.added`, one per row; empty: nothing is added to any.

        Returns:
            The new rows, each with its first token (unless that ended it).
        """
        first, lengths = len(self.rows), [len(question) for question in questions]
        joined = [
            Row(owner, limit, added=each)
            for owner, limit, each in zip(
                owners, limits, added or [None] * len(owners), strict=True
            )
        ]
        width = max(lengths)
        with torch.inference_mode():
            if self._slab is None:
                self._slab = Slab(contexts[0][-1])
            slab = self._slab
            slab.add(contexts, width + min(max(limits), _ROOM))
            cache, seen, positions = slab.cache(first, width)
            # The padding is written too; the answer's tokens overwrite it before it is read.
            hidden = self._model.run(padded(questions, self._model.device), cache, seen, positions)
            for row, length in enumerate(lengths, first):
                slab.lengths[row] += length
            last = hidden[torch.arange(len(lengths)), torch.tensor(lengths) - 1]
            logits = self._logits(last, joined)
            on_first(logits)
            made: list[int] = logits.argmax(dim=-1).tolist()
        for new, token in zip(joined, made, strict=True):
            self._take(new, token)
        self.rows += joined
        return joined

    def step(self) -> list[Row[Owner]]:
        """Make one more token for every row; returns the rows (some of them may be done now)."""
        slab = self._slab
        assert slab is not None  # there are rows
        last = [[row.tokens[-1]] for row in self.rows]
        with torch.inference_mode():
            cache, seen, positions = slab.cache(0, 1)
            tokens = torch.tensor(last, device=self._model.device)
            hidden = self._model.run(tokens, cache, seen, positions, prompt=False)
            slab.lengths = [length + 1 for length in slab.lengths]
            made: list[int] = self._logits(hidden[:, -1], self.rows).argmax(dim=-1).tolist()
        for row, token in zip(self.rows, made, strict=True):
            self._take(row, token)
        return list(self.rows)

    def leave(self) -> None:
        """Free the rows that are done."""
        for index in range(len(self.rows) - 1, -1, -1):
            if self.rows[index].done:
                assert self._slab is not None  # there are rows
                self._slab.leave(index)
                self.rows[index] = self.rows[-1]
                self.rows.pop()

    def _logits(self, hidden: Tensor, rows_of: Sequence[Row[Owner]]) -> Tensor:
        """The logits of each row of last hidden states `[rows, E]`, with what memories say."""
        rows = len(hidden)
        places = [len(row.tokens) for row in rows_of]
        hidden = remembering(hidden, [row.added for row in rows_of], places)
        few = pad(hidden, (0, 0, 0, max(0, _LEAST_ROWS - rows)))
        return self._model.logits(few)[:rows]

    def _take(self, row: Row[Owner], token: int) -> None:
        row.fresh = token not in self._model.eos_ids
        if not row.fresh:
            row.done = True
            return
        row.tokens.append(token)
        row.done = len(row.tokens) >= row.limit
