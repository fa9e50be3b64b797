"""What the large model says once a memory has been read: the same sums as in the service.

The last hidden state h becomes h + gain * |h| * y, y the weighted directions of the values' tokens
at this place of the answer, of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.memory.passes import last_of, prompt_ids
from projector.codec.arrays import Floats
from projector.memory import Recalled
from projector.models.lm import LM

_ROWS = 256


class ValueReader:
    """Greedy answers of the large model with what was recalled for each question.

    Args:
        large: frozen.
        gain: length of what is added, as a share of the state's.
    """

    def __init__(self, large: LM, gain: float) -> None:
        self.large, self.gain = large, gain
        head = large.model.get_output_embeddings().weight.detach().float()
        self._head, self._mean = head, head.mean(dim=0)
        self._ids: dict[str, list[int]] = {}

    def ids(self, value: str) -> list[int]:
        """The tokens of a value in an answer."""
        if value not in self._ids:
            self._ids[value] = self.large.answer_ids(value)
        return self._ids[value]

    def direction(self, recalled: Sequence[Recalled], place: int) -> Floats | None:
        """What is added at one place of the answer, [d] of length 1; None where values ended."""
        total = torch.zeros_like(self._mean)
        for one in recalled:
            ids = [*self.ids(one.value), min(self.large.eos_ids)]
            if place < len(ids):
                each = self._head[ids[place]] - self._mean
                total += one.weight * each / each.norm()
        length = float(total.norm())
        return None if length == 0 else (total / length).numpy()

    def logits(self, states: Floats, recalled: Sequence[Sequence[Recalled]], place: int) -> Floats:
        """Logits after reading, [n, vocabulary], of states [n, d]; of shut gates unchanged."""
        changed = states.copy()
        for row, told in enumerate(recalled):
            added = self.direction(told, place) if told else None
            if added is not None:
                changed[row] += self.gain * np.linalg.norm(states[row]) * added
        with torch.inference_mode():
            made: Floats = self.large.logits(torch.from_numpy(changed)).float().numpy()
        return made

    def first_tokens(self, states: Floats, recalled: Sequence[Sequence[Recalled]]) -> list[int]:
        """The first token of each answer."""
        made: list[int] = []
        for at in range(0, len(states), _ROWS):
            part = slice(at, at + _ROWS)
            made += self.logits(states[part], recalled[part], 0).argmax(axis=1).tolist()
        return made

    def choices(
        self,
        states: Floats,
        recalled: Sequence[Sequence[Recalled]],
        candidates: Sequence[Sequence[str]],
    ) -> list[int]:
        """Which of each row's candidates has the likeliest first token."""
        made: list[int] = []
        for at in range(0, len(states), _ROWS):
            part = slice(at, at + _ROWS)
            logits = self.logits(states[part], recalled[part], 0)
            for row, words in zip(logits, candidates[part], strict=True):
                made.append(int(np.argmax([row[self.ids(word)[0]] for word in words])))
        return made

    def answers(
        self, prompts: Sequence[str], recalled: Sequence[Sequence[Recalled]], most: int
    ) -> list[str]:
        """Whole greedy answers, at most so many tokens each."""
        rows = [prompt_ids(self.large, prompt) for prompt in prompts]
        made: list[list[int]] = [[] for _ in rows]
        going = set(range(len(rows)))
        for place in range(most):
            chosen = sorted(going)
            for at in range(0, len(chosen), 32):
                part = chosen[at : at + 32]
                states = last_of(self.large, [[*rows[i], *made[i]] for i in part])
                logits = self.logits(states, [recalled[i] for i in part], place)
                for i, token in zip(part, logits.argmax(axis=1).tolist(), strict=True):
                    if token in self.large.eos_ids:
                        going.discard(i)
                    else:
                        made[i].append(token)
        return [self.large.text(ids).strip() for ids in made]
