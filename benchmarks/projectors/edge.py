"""One edge model with its pairs, moments and judges, each made when it is first needed."""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from projector.maps.moments import Moments
from projector.models.vlm import VLM
from projector.training.corpus import Corpus, collect
from projector.training.dataset import Dataset
from projector.training.fit import moments_of
from projector.training.sensitivity import token_weights
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from projector.validation.answers import Answers, Validator
from protos.process.files import write_files
from reference.export_yard import export

SPLITS = ("test", "shifted")
FOLDS = 3
CALIBRATION_PICTURES = 640
"""Validation pictures on which bounds are calibrated."""


def split(folder: Path, name: str, count: int, questions: int) -> Dataset:
    """A split of the yard as a folder of pictures; written once."""
    path = folder / f"{name}-{count}-{questions}"
    if not (path / "questions.jsonl").exists():
        export(path, name, 0, count, questions)
    return Dataset(path)


class EdgeModel:
    """One edge model; pairs, moments and judges are made when they are first needed."""

    def __init__(self, path: Path, target: VLM, args: argparse.Namespace) -> None:
        """Loads the model only."""
        self.name, self.path, self.target, self.args = path.name, path, target, args
        self.source = VLM.load(path)
        self.work = args.work / f"{self.name}-{self.source.layout.fingerprint[:8]}"
        self._kept: dict[bool, list[tuple[Moments, float]]] = {}
        self.sizes = {
            "train": (args.train_pictures, 16),
            "test": (args.pictures, 6),
            "shifted": (args.shifted_pictures, 6),
        }

    @property
    def about(self) -> list[Any]:
        """All that determines a figure of this edge, except the map."""
        layouts = [self.source.layout.fingerprint, self.target.layout.fingerprint]
        return [self.name, *layouts, sorted(self.sizes.items())]

    @cached_property
    def data(self) -> dict[str, Dataset]:
        """Pictures and questions per split."""
        return {name: split(self.args.work, name, *size) for name, size in self.sizes.items()}

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """Pairs per split; existing shards are not made again."""
        return {
            part: collect(
                self.source,
                self.target,
                data.picture,
                len(data),
                self.work / part,
                f"{self.name} {part}",
                data.digest,
            )
            for part, data in self.data.items()
        }

    @cached_property
    def _weights(self) -> tuple[npt.NDArray[np.float32], float]:
        """Weights of the training pictures' tokens, and their seconds; one pass for all edges."""
        whole, data = self.corpora["train"], self.data["train"]
        name = f"weights-{self.target.layout.fingerprint[:8]}-{data.digest[:8]}.npz"
        path = self.args.work / name
        if not path.exists():
            begun = time.perf_counter()
            trainer: Trainer[Any] = Trainer(
                None, whole, self.target, data.questions, TrainSettings(), self.work / "state"
            )
            found = token_weights(trainer)
            stream = io.BytesIO()
            np.savez(stream, weights=found, seconds=time.perf_counter() - begun)
            write_files(path.parent, {path.name: stream.getvalue()})
        with np.load(path, allow_pickle=False) as kept:
            return kept["weights"], float(kept["seconds"])

    def _folds(self, focus: bool) -> list[tuple[Moments, float]]:
        """Moments of each third of the training pictures, and the seconds they took."""
        if focus not in self._kept:
            whole, found = self.corpora["train"], []
            order = np.random.default_rng(0).permutation(len(whole))
            weights, spent = self._weights if focus else (None, 0.0)
            for fold in range(FOLDS):
                begun = time.perf_counter()
                chosen = np.sort(order[fold::FOLDS])
                part = Corpus(whole.x[chosen], whole.y[chosen], whole.attention[chosen])
                each = None if weights is None else weights[chosen]
                moments = moments_of(part, self.source, self.target, weights=each)
                found.append((moments, time.perf_counter() - begun + spent / FOLDS))
            self._kept[focus] = found
        return self._kept[focus]

    def moments(self, seed: int | None, focus: bool = False) -> tuple[Moments, float]:
        """Moments of all thirds except one (None: of all), and the seconds they took.

        A fit judges its choices on the third left out.
        """
        folds = self._folds(focus)
        chosen = [folds[i] for i in range(FOLDS) if i != seed]
        total = chosen[0][0]
        for moments, _ in chosen[1:]:
            total = total + moments
        held = None if seed is None else folds[seed][0]
        return replace(total, held=held), sum(seconds for _, seconds in chosen)

    @cached_property
    def judges(self) -> dict[str, Validator]:
        """One per split, for any map."""
        found = {}
        for part in SPLITS:
            data, corpus = self.data[part], self.corpora[part]
            nothing = TrainSettings(reconstruct_steps=0, task_steps=0)
            trainer: Trainer[Any] = Trainer(
                None, corpus, self.target, data.questions, nothing, self.work / "state"
            )
            found[part] = Validator(trainer, corpus, data)
        return found

    @cached_property
    def calibration(self) -> Corpus:
        """Pairs of validation pictures."""
        data = split(self.args.work, "validation", CALIBRATION_PICTURES, 1)
        folder, name = self.work / "validation", f"{self.name} validation"
        return collect(self.source, self.target, data.picture, len(data), folder, name, data.digest)

    def answers(self, made: Any) -> dict[str, Answers]:
        """Answers through a map, per split."""
        for judge in self.judges.values():
            judge.trainer.map = made
        return {part: judge.mapped() for part, judge in self.judges.items()}
