"""How well a frozen language model answers questions of eight words from a cache (torch).

Knows contexts, a target model, flat states. Does not know: how a map was fitted, files. A question
is answered by the candidate whose first token is the likeliest after it; the eight first tokens
differ, so no more is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.real_pair.facts import Context, Question
from projector.cache import LayerCache
from projector.lm import LM
from projector.packed import Packed, Scenes
from projector.train import Trainer
from protos.errors import ModelError

_BATCH = 8

Make = Callable[[range], Sequence[LayerCache]]
"""From the places of some contexts to the cache that the model is to answer from."""


def first_tokens(model: LM, question: Question) -> list[int]:
    """The first token of each candidate, the right one first.

    Raises:
        ModelError: two of them begin alike, so that they cannot be told apart.
    """
    firsts = [model.answer_ids(candidate)[0] for candidate in question.candidates]
    if len(set(firsts)) < len(firsts):
        raise ModelError(f"{model.layout.model_id} begins two of {question.candidates} alike")
    return firsts


@dataclass
class Judge:
    """The questions of some contexts, for one model.

    Attributes:
        trainer: holds the model and how states become its cache.
        contexts: with their questions, as many for each.
    """

    trainer: Trainer[Any]
    contexts: Sequence[Context]

    def answers(self, make: Make) -> list[bool]:
        """Whether each question is answered right from the caches that `make` gives."""
        model = self.trainer.target
        assert isinstance(model, LM)
        right: list[bool] = []
        with torch.no_grad():
            for begin in range(0, len(self.contexts), _BATCH):
                chosen = range(begin, min(begin + _BATCH, len(self.contexts)))
                asked = [self.contexts[i].questions for i in chosen]
                firsts = [[first_tokens(model, q) for q in row] for row in asked]
                packed = Packed.of(
                    [
                        [
                            (self.trainer.question_ids(q.text), f[:1])
                            for q, f in zip(*row, strict=True)
                        ]
                        for row in zip(asked, firsts, strict=True)
                    ]
                )
                logits = self.trainer.logits(packed, make(chosen))
                columns = torch.tensor([f for row in firsts for f in row])
                right += (logits.gather(1, columns).argmax(1) == 0).tolist()
        return right

    @property
    def clusters(self) -> list[int]:
        """The context of each question."""
        return [i for i, context in enumerate(self.contexts) for _ in context.questions]

    def blind(self, chosen: range) -> Sequence[LayerCache]:
        """No context at all."""
        size = len(chosen)
        prefix = self.trainer.prefix
        if prefix[0][0].shape[2]:
            return [(k.expand(size, -1, -1, -1), v.expand(size, -1, -1, -1)) for k, v in prefix]
        # Without a constant prefix there is nothing to attend to: an empty cache.
        return [
            (k.new_zeros(size, *k.shape[1:]), v.new_zeros(size, *v.shape[1:])) for k, v in prefix
        ]

    def states(self, states: npt.NDArray[np.floating]) -> Sequence[LayerCache]:
        """From flat states `[B, N, d]`, NaN past a text's end."""
        return self.trainer.native_layers(states)


def own_answers(model: LM, contexts: Sequence[Context]) -> list[bool]:
    """Whether a model that reads the contexts itself answers right, one entry per question."""
    right: list[bool] = []
    with torch.no_grad():
        for context in contexts:
            row = model.tokens(context.text).ids
            layers = model.context([row])
            for question in context.questions:
                ids = model.question_ids(question.text)
                rows = Scenes(layers, torch.tensor([layers[0][0].shape[2]]))
                packed = Packed.of([[(ids, first_tokens(model, question)[:1])]])
                logits = packed.logits(model.decoder, model.head, rows)
                columns = torch.tensor([first_tokens(model, question)])
                right += (logits.gather(1, columns).argmax(1) == 0).tolist()
    return right
