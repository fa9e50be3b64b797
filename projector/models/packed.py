"""Many questions behind one cached scene in a single forward pass (torch).

Each question sees the scene and itself, never another question, so each is answered as if it were
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projector.models import cache as kv
from projector.models.cache import LayerCache
from projector.models.frozen import FrozenModel

IGNORED = -100


class Scenes(list[LayerCache]):
    """The cached layers of a batch whose rows hold different numbers of tokens.

    Attributes:
        lengths: tokens of each row, the constant prefix included, `[B]`; layers are not read past
            them.
    """

    def __init__(self, layers: Sequence[LayerCache], lengths: Tensor) -> None:
        super().__init__(layers)
        self.lengths = lengths


@dataclass(frozen=True)
class Packed:
    """B pictures with Q questions each, every question padded to S tokens.

    Attributes:
        ids: `[B, Q * S]` each question's tokens, then its answer's without the last.
        labels: `[B, Q * S]` the next token where it is part of the answer, else -100.
        questions: Q.
    """

    ids: Tensor
    labels: Tensor
    questions: int

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
        device: torch.device | None = None,
    ) -> Packed:
        """Pack (question ids, answer ids) pairs, the same number for each picture.

        Args:
            rows: per picture, per question: ids from `VLM.question_ids`, and the answer's ids with
                the end token.
            device: of the model that reads them.
        """
        count = len(rows[0])
        longest = max(len(q) + len(a) - 1 for row in rows for q, a in row)
        ids = torch.zeros((len(rows), count, longest), dtype=torch.long)
        labels = torch.full((len(rows), count, longest), IGNORED)
        for b, row in enumerate(rows):
            for k, (question, answer) in enumerate(row):
                sequence = [*question, *answer[:-1]]
                ids[b, k, : len(sequence)] = torch.tensor(sequence)
                labels[b, k, len(question) - 1 : len(sequence)] = torch.tensor(list(answer))
        return cls(ids.flatten(1).to(device), labels.flatten(1).to(device), count)

    def logits(self, model: FrozenModel, layers: Sequence[LayerCache]) -> Tensor:
        """Logits at every labelled position, in row-major order; arguments as in `hidden`.

        Returns:
            `[labels != -100, vocabulary]` float32, from the model's own output path.
        """
        return model.logits(self.hidden(model, layers)).float()

    def hidden(self, model: FrozenModel, layers: Sequence[LayerCache]) -> Tensor:
        """Last hidden states at every labelled position, in row-major order.

        Args:
            model: the frozen model.
            layers: per layer keys and values `[B, kv_heads, T, head_dim]` of the scene, rotated;
                gradients flow into them. `Scenes` where rows differ in length.

        Returns:
            `[labels != -100, E]`.
        """
        batch, total = self.ids.shape
        held, each = layers[0][0].shape[2], total // self.questions
        device = self.ids.device
        owner = torch.arange(self.questions, device=device).repeat_interleave(each)
        place = torch.arange(total, device=device)
        own = (owner[:, None] == owner[None]) & (place[:, None] >= place[None])
        if isinstance(layers, Scenes):
            lengths = layers.lengths
        else:
            lengths = torch.full((batch,), held, device=device)
        scene = torch.arange(held, device=device) < lengths[:, None, None]
        mask = torch.cat([scene.expand(-1, total, -1), own.expand(batch, -1, -1)], dim=2)
        positions = torch.arange(each, device=device).repeat(self.questions) + lengths[:, None]
        hidden = model.run(self.ids, kv.new_cache(layers), mask[:, None], positions)
        return hidden[self.labels != IGNORED]

    def exactly_right(self, logits: Tensor) -> Tensor:
        """Which questions have the right token most likely at every position of the answer.

        `[B, Q]` bool. Under teacher forcing this equals an exact match of the greedy answer.

        Args:
            logits: from `logits`.
        """
        wanted = self.labels != IGNORED
        wrong = torch.zeros_like(self.labels)
        wrong[wanted] = (logits.argmax(-1) != self.labels[wanted]).long()
        right: Tensor = wrong.view(len(wrong), self.questions, -1).sum(-1) == 0
        return right
