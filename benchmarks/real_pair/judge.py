"""How well a frozen language model chooses among eight words from a cache (torch).

Its answer is the likeliest of the eight: by first tokens if they all differ, else by the sum over
all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.real_pair.facts import Context, Question
from projector.models.cache import LayerCache
from projector.models.lm import LM
from projector.models.packed import IGNORED, Packed, Scenes
from projector.training.train import Trainer
from protos.errors import FitError

_BATCH = 8

Make = Callable[[range], Sequence[LayerCache]]
"""Makes the cache from which the model answers, for the contexts of a range."""


def answer_ids(model: LM, question: Question) -> list[list[int]]:
    """The tokens of each candidate after the question, the right one first."""
    if question.space:
        return [model.answer_ids(candidate) for candidate in question.candidates]
    return [
        list(model.tokenizer(candidate, add_special_tokens=False)["input_ids"])
        for candidate in question.candidates
    ]


def apart(candidates: Sequence[Sequence[int]]) -> bool:
    """Whether their first tokens tell the candidates apart."""
    return len({ids[0] for ids in candidates}) == len(candidates)


@dataclass
class Judge:
    """The questions of some contexts, for one model.

    Attributes:
        trainer: holds the model and how states become its cache.
        contexts: contexts with their questions, the same number for each.
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
                rows = [
                    [
                        (self.trainer.question_ids(q.text), answer_ids(model, q))
                        for q in self.contexts[i].questions
                    ]
                    for i in chosen
                ]
                right += best_first(model, rows, make(chosen))
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
        # Without a constant prefix the cache is empty.
        return [
            (k.new_zeros(size, *k.shape[1:]), v.new_zeros(size, *v.shape[1:])) for k, v in prefix
        ]

    def states(self, states: npt.NDArray[np.floating]) -> Sequence[LayerCache]:
        """From flat states `[B, N, d]`, NaN past a text's end."""
        return self.trainer.native_layers(states)


Asked = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The tokens of a question, and of each candidate."""


def best_first(
    model: LM, rows: Sequence[Sequence[Asked]], layers: Sequence[LayerCache]
) -> list[bool]:
    """Whether the first candidate of each question is the likeliest.

    Raises:
        FitError: scores that are not finite.
    """
    if all(apart(candidates) for row in rows for _, candidates in row):
        packed = Packed.of([[(q, candidates[0][:1]) for q, candidates in row] for row in rows])
        first = torch.tensor([[ids[0] for ids in c] for row in rows for _, c in row])
        some, columns = first.unique(return_inverse=True)  # of a quarter of a million tokens
        found = model.logits_of(some)(packed.hidden(model, layers)).float()
        return _first_largest(found.gather(1, columns))
    scores = []
    for place in range(len(rows[0][0][1])):  # one pass per candidate, over all its tokens
        packed = Packed.of([[(q, candidates[place]) for q, candidates in row] for row in rows])
        wanted = packed.labels[packed.labels != IGNORED]
        found = packed.logits(model, layers).log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        sizes = [len(candidates[place]) for row in rows for _, candidates in row]
        scores.append(torch.stack([part.sum() for part in found.split(sizes)]))
    return _first_largest(torch.stack(scores, dim=1))


def _first_largest(scores: Tensor) -> list[bool]:
    if not bool(scores.isfinite().all()):  # a NaN would count as the largest: as right
        raise FitError("the model's logits are not finite: the cache that it was given is not")
    return [bool(right) for right in scores.argmax(1) == 0]


def own_answers(model: LM, contexts: Sequence[Context]) -> list[bool]:
    """Whether a model that reads the contexts itself answers right, one entry per question."""
    prefix, right = len(model.prefix_ids), list[bool]()
    with torch.no_grad():
        for begin in range(0, len(contexts), _BATCH):
            some = contexts[begin : begin + _BATCH]
            read = [model.tokens(context.text).ids for context in some]
            held = torch.tensor([prefix + len(ids) for ids in read])
            rows = [
                [(model.question_ids(q.text), answer_ids(model, q)) for q in context.questions]
                for context in some
            ]
            scenes = Scenes(model.context(read), held)
            right += best_first(model, rows, scenes)
    return right
