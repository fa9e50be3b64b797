"""Answers of the frozen target model from a map's cache, its own cache, and the controls (torch).

Accuracy is always reported with its controls, and from at least 384 questions (5 points either way
at 95 %).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from projector.maps.base import Map
from projector.models.cache import LayerCache
from projector.models.packed import IGNORED, Packed
from projector.training.corpus import Corpus
from projector.training.dataset import Asked, Dataset
from projector.training.train import Trainer
from projector.validation.bounds import through_fp8
from protos.errors import CorpusError

_BATCH = 32
_KEPT_BYTES = 1 << 28  # kept of native logits: every arm is compared with them

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""Narrower types that a map's weights may be stored in."""

States = npt.NDArray[np.floating]
Make = Callable[[npt.NDArray[np.float32], States, range], Sequence[LayerCache]]
"""Makes a cache from source states `[B, N, d_s]`, target states `[B, M, d_r]` and the pictures."""


@dataclass
class Answers:
    """What the frozen model answered from some cache, one entry per question.

    Attributes:
        right: every answer token is the likeliest one (an exact match, under teacher forcing).
        first: the answer's first token is the native cache's.
        full: all its tokens are.
        kl: KL of the native answer distribution from this one, nats, summed over the answer.
        variation: total variation distance of the first token's distributions, 0 to 1.
    """

    right: list[bool]
    first: list[bool]
    full: list[bool]
    kl: list[float]
    variation: list[float]


@dataclass
class Validator:
    """Held-out pairs and the questions about their pictures.

    Attributes:
        trainer: holds the map and the frozen target, on any device.
        corpus: held-out pairs, in the dataset's order from picture `first` on.
        dataset: pictures and questions.
        per_picture: questions asked of each picture.
        first: index of the corpus's first picture in the dataset.
        told: called with how many more pictures an arm was asked about.
    """

    trainer: Trainer[Any]
    corpus: Corpus
    dataset: Dataset
    per_picture: int = 6
    first: int = 0
    told: Callable[[int], None] = lambda _: None

    def __post_init__(self) -> None:
        """Lists the questions.

        Raises:
            CorpusError: fewer pictures in the dataset than in the corpus.
            FitError: fewer than 384 questions.
        """
        if self.first + len(self.corpus) > len(self.dataset):
            raise CorpusError(
                f"the corpus holds {len(self.corpus)} pictures, the dataset {len(self.dataset)}"
            )
        inputs = range(self.first, self.first + len(self.corpus))
        self.dataset.require_questions(self.per_picture, inputs)
        self.rows: list[list[Asked]] = [
            list(self.dataset.asked(self.first + i)[: self.per_picture])
            for i in range(len(self.corpus))
        ]
        self.asked = [one for row in self.rows for one in row]
        self.pictures = [one.picture for one in self.asked]
        self._native: dict[int, torch.Tensor] = {}

    @property
    def map(self) -> Any:
        """The map, on the CPU; only the target runs on another device."""
        made = self.trainer.map
        return made if self.trainer.device.type == "cpu" else copy.deepcopy(made).to("cpu")

    def answers(self, make: Make) -> Answers:
        """Answers from a cache, beside those from the native one."""
        found = Answers([], [], [], [], [])
        with torch.no_grad():
            for begin in range(0, len(self.corpus), _BATCH):
                chosen = range(begin, min(begin + _BATCH, len(self.corpus)))
                rows = [self.rows[i] for i in chosen]
                self.told(len(chosen))
                if not any(rows):
                    continue
                packed = self._packed(rows)
                x = self.corpus.x[begin : chosen.stop].astype(np.float32)
                y = self.corpus.y[begin : chosen.stop]
                given = self.trainer.logits(packed, make(x, y, chosen))
                native = self._native_logits(begin, packed, y)
                self._take(found, packed, native, given, [len(row) for row in rows])
        return found

    def _packed(self, rows: Sequence[Sequence[Asked]]) -> Packed:
        """Pad every picture to the same number of questions; `_take` drops the repeated ones."""
        most = max(map(len, rows))
        some = next(row for row in rows if row)
        full = [(list(row) * most)[:most] if row else [some[0]] * most for row in rows]
        ids, answers = self.trainer.question_ids, self.trainer.answer_ids
        asked = [[(ids(q.text), answers(q.answer)) for q in row] for row in full]
        return Packed.of(asked, self.trainer.device)

    def _native_logits(self, begin: int, packed: Packed, y: States) -> torch.Tensor:
        if begin in self._native:
            return self._native[begin]
        found = self.trainer.logits(packed, self.trainer.native_layers(y))
        if found.nbytes + sum(kept.nbytes for kept in self._native.values()) <= _KEPT_BYTES:
            self._native[begin] = found
        return found

    def _take(
        self,
        found: Answers,
        packed: Packed,
        native: torch.Tensor,
        given: torch.Tensor,
        counts: list[int],
    ) -> None:
        wanted = packed.labels != IGNORED
        shape = (len(packed.labels), packed.questions, -1)
        log_p, log_q = native.log_softmax(-1), given.log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        columns = {
            "wrong": (given.argmax(-1) != packed.labels[wanted]).float(),
            "other": (given.argmax(-1) != native.argmax(-1)).float(),
            "kl": (p * (log_p - log_q)).sum(-1),
            "variation": 0.5 * (p - q).abs().sum(-1),
        }
        spread = {}
        for name, values in columns.items():
            grid = given.new_zeros(packed.labels.shape)
            grid[wanted] = values
            spread[name] = grid.view(*shape)
        start = wanted.view(*shape).float().argmax(-1, keepdim=True)
        first = {name: grid.gather(-1, start)[..., 0] for name, grid in spread.items()}
        for b, count in enumerate(counts):
            found.right += (spread["wrong"][b, :count].sum(-1) == 0).tolist()
            found.full += (spread["other"][b, :count].sum(-1) == 0).tolist()
            found.first += (first["other"][b, :count] == 0).tolist()
            found.kl += spread["kl"][b, :count].sum(-1).tolist()
            found.variation += first["variation"][b, :count].tolist()

    # -- arms

    def mapped(self) -> Answers:
        """From the map's cache."""
        return self.answers(lambda x, _y, _i: self.trainer.mapped_layers(x))

    def mapped_fp8(self) -> Answers:
        """From the map's cache, latents through FP8."""
        made = self.map
        through = through_fp8(made, self.corpus)

        def states(x: npt.NDArray[np.float32]) -> torch.Tensor:
            z = made.down(made.normal(torch.from_numpy(x)))
            read: torch.Tensor = made.cloud(torch.from_numpy(through(z.numpy())))
            there: torch.Tensor = made.states(read)
            return there

        return self.states(states)

    def in_precision(self, name: str) -> Answers:
        """From the map's cache, its weights stored in a type of `PRECISIONS`."""
        made = self.map.in_precision(PRECISIONS[name])
        return self.states(lambda x: made(torch.from_numpy(x)))

    def native(self) -> Answers:
        """From the target's own cache."""
        return self.answers(lambda _x, y, _i: self.trainer.native_layers(y))

    def states(self, of: Callable[[npt.NDArray[np.float32]], torch.Tensor]) -> Answers:
        """From target states `[B, M, d_r]` that a function makes of source states."""
        return self.answers(lambda x, _y, _i: self.trainer.layers(of(x)))

    def blind(self) -> Answers:
        """From no picture at all."""
        return self.answers(lambda x, _y, _i: self.trainer.blind_layers(len(x)))

    def other_picture(self) -> Answers:
        """From the cache of the next picture."""
        whole = self.corpus.x

        def make(_x: npt.NDArray[np.float32], _y: States, chosen: range) -> list[LayerCache]:
            others = [(i + 1) % len(whole) for i in chosen]
            return self.trainer.mapped_layers(whole[others].astype(np.float32))

        return self.answers(make)

    def other_labels(self) -> tuple[list[bool], list[int]]:
        """The score of the next picture's labels, on questions that the dataset answers for it.

        Returns:
            Whether they are right, and the indices of those questions.
        """
        right, where = [], []
        for index, one in enumerate(self.asked):
            place = (one.picture - self.first + 1) % len(self.corpus) + self.first
            label = self.dataset.truth(place, one.text)
            if label is not None:
                right.append(label == one.answer)
                where.append(index)
        return right, where

    def controls(self, untrained_edge: npt.NDArray[np.floating] | None) -> dict[str, Answers]:
        """Answers of every control: the arms that must do badly.

        Args:
            untrained_edge: target states `[n, M, d_r]` of a map fitted to a random edge model.
        """
        made = self.map
        mean = made.y_stats[0]
        arms = {
            "blind": self.blind(),
            "other_picture": self.other_picture(),
            "mean_state": self.states(lambda x: mean.expand(len(x), self.corpus.y.shape[1], -1)),
        }
        if isinstance(made, Map):
            other = untrained(made)
            arms["untrained_map"] = self.states(lambda x: other(torch.from_numpy(x)))
        if untrained_edge is not None:
            states = untrained_edge
            arms["untrained_edge"] = self.answers(
                lambda _x, _y, i: self.trainer.native_layers(states[i.start : i.stop])
            )
        return arms


def untrained(made: Map, seed: int = 1) -> Map:
    """The same map with random weights of the same size as its own."""
    other = made.in_precision(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            scale = parameter.square().mean().sqrt()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return other
