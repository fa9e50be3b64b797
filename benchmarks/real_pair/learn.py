"""Learns maps between two language models, step by step; each step's result is kept.

The calls, in order: `corpus` runs both models over texts; `maps` fits closed forms; `tuned` trains
one on through the frozen target; `untrained_maps` fits closed forms to a source with random
weights. Nothing here sees a word that the benchmark holds out.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.real_pair import diverse
from benchmarks.real_pair.diverse import Lesson, Words
from benchmarks.real_pair.fit import closed_forms, keep, kept, source_columns
from projector.maps import load
from projector.maps.base import Map, write
from projector.maps.closed_form import Statistics
from projector.maps.metric import Metric
from projector.maps.moments import Doubles, Moments, States
from projector.maps.tuned import Tuned
from projector.models.decoder import key_norm_weights
from projector.models.lm import LM
from projector.training.corpus import Corpus
from projector.training.fit import chunks, untrained
from projector.training.ragged import present
from projector.training.sensitivity import measure
from projector.training.settings import TrainSettings
from projector.training.texts import SHARD_TEXTS, aligned_states, collect, paired_tokens
from projector.training.train import Trainer
from protos.errors import CorpusError
from protos.process.files import write_files

FULL = 0
"""The rank that stands for the whole matrix."""
FOLDS = 4
_UNTRAINED = "untrained "
_UNTRAINED_SEED = 2
_CHUNK = 160
_SECONDS = "seconds.json"
_NOTED_S = 10.0
_TEXTS = ("texts",)
_CLOSED = ("texts", "layers", "ridge", "shrink")
_TUNED = ("directions", "steps", "batch", "questions", "rate")


@dataclass(frozen=True)
class Settings:
    """How maps are learnt.

    Attributes:
        ranks: numbers per token of the low-rank maps; codecs and controls are tried at the second.
        texts: number of texts to learn from.
        layers: source layers to use; 0 for all.
        ridge: ridge weight of the closed forms.
        shrink: as `Metric.of`; 0 for plain squared errors.
        directions: source directions that training through the target may use.
        steps: steps of that training.
        batch: texts per step.
        questions: questions per text and step.
        rate: peak learning rate.
    """

    ranks: tuple[int, ...] = (512, 256, 128, 64)
    texts: int = 12000
    layers: int = 0
    ridge: float = 1e-2
    shrink: float = 0.1
    directions: int = 1024
    steps: int = 60
    batch: int = 16
    questions: int = 4
    rate: float = 5e-4

    @property
    def coded(self) -> int:
        """The rank at which codecs and controls are tried."""
        return self.ranks[1]

    def named(self, *fields: str) -> str:
        """A file name that states these settings."""
        return "-".join(f"{name}{getattr(self, name):g}" for name in fields)


@dataclass
class Learner:
    """One direction of the pair.

    Attributes:
        source: the model whose cache is projected.
        target: the frozen model that answers.
        work: folder that keeps every step's result.
        settings: how maps are learnt.
    """

    source: LM
    target: LM
    work: Path
    settings: Settings
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds of each step, by its settings, earlier runs included."""
    _noting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        """Reads the results of earlier runs."""
        self.work.mkdir(parents=True, exist_ok=True)
        if (self.work / _SECONDS).exists():
            self.spent = json.loads((self.work / _SECONDS).read_text())

    @contextmanager
    def timed(self, step: str, fields: Sequence[str]) -> Iterator[None]:
        """Adds a step's seconds to those spent on it with the same settings.

        They are written every few seconds, so that a killed step is counted too.
        """
        plan, begun, over = self.settings.named(*fields), time.monotonic(), threading.Event()
        before = self.spent.get(step, {}).get(plan, 0.0)

        def note() -> None:
            with self._noting:
                found = self.spent.setdefault(step, {})
                found[plan] = before + time.monotonic() - begun
                write_files(self.work, {_SECONDS: json.dumps(self.spent, indent=1).encode()})

        def keep_noting() -> None:
            while not over.wait(_NOTED_S):
                note()

        noting = threading.Thread(target=keep_noting, daemon=True)
        noting.start()
        try:
            yield
        finally:
            over.set()
            noting.join()
            note()

    def minutes(self) -> dict[str, float]:
        """Minutes of each step with these settings; a step that was not timed is missing."""
        plans = [self.settings.named(*fields) for fields in (_TEXTS, _CLOSED, _CLOSED + _TUNED)]
        return {
            step: round(found[plan] / 60, 2)
            for step, found in self.spent.items()
            for plan in plans
            if plan in found
        }

    # -- pairs -------------------------------------------------------------------------------------

    def corpus(self, name: str, texts: Sequence[str], source: LM | None = None) -> Corpus:
        """Both models' caches of some texts; `source` replaces the learner's own source."""
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        if source is not None:  # its layout is that of the trained one
            name, digest = _UNTRAINED + name, _UNTRAINED + digest
        folder = self.work / f"corpus-{name.replace(' ', '-')}-{len(texts)}"
        whole = len(list(folder.glob("*.safetensors"))) == -(-len(texts) // SHARD_TEXTS)
        with nullcontext() if whole else self.timed(f"corpus {name}", _TEXTS):
            return collect(
                source or self.source,
                self.target,
                texts.__getitem__,
                len(texts),
                folder,
                name,
                inputs=digest,
            )

    @cached_property
    def words(self) -> Words:
        """The words of both vocabularies."""
        return Words.of(*(model.tokenizer.get_vocab() for model in (self.source, self.target)))

    @cached_property
    def lessons(self) -> list[Lesson]:
        """The training texts."""
        return diverse.make(self.settings.texts, 0, self.words)

    def claim(self) -> None:
        """Marks the work folder as this learner's.

        Raises:
            CorpusError: it holds results of other lessons.
        """
        told = "\n".join(one.text for one in self.lessons)
        digest = hashlib.sha256(told.encode()).hexdigest()
        path = self.work / f"lessons-{self.settings.texts}.txt"
        known = path.read_text() if path.exists() else ""
        if not known and not any(self.work.glob("moments-*")):
            write_files(self.work, {path.name: digest.encode()})
        elif known != digest:
            raise CorpusError(f"{self.work} holds what was learnt from other texts: remove it")

    @cached_property
    def training(self) -> Corpus:
        """Both models' caches of the lessons."""
        return self.corpus("training", [lesson.text for lesson in self.lessons])

    def trainer(self, made: Any, steps: int = 0, name: str = "state") -> Trainer[Any]:
        """Trains a map on the lessons."""
        plan = self.settings
        settings = TrainSettings(
            reconstruct_steps=0,
            task_steps=steps,
            batch=plan.batch,
            questions=plan.questions,
            rate=2 * plan.rate,  # the task stage has half of it
            penalty_weight=0.0,
        )
        return Trainer(
            made,
            self.training,
            self.target,
            lambda text, count, seed: self.lessons[text].questions(count, seed),
            settings,
            self.work / name,
            about=plan.named(*_CLOSED, "directions"),
        )

    # -- closed forms ------------------------------------------------------------------------------

    def moments(self, without: int) -> Moments:
        """Moments of the lessons without one fold; each fold's moments are made once."""

        def pairs(chosen: npt.NDArray[np.bool_]) -> Iterator[tuple[States, ...]]:
            return chunks(self.training.part(chosen), self.source.layout, self.target.layout)

        return self._moments("moments", without, pairs)

    def _moments(
        self,
        name: str,
        without: int,
        pairs: Callable[[npt.NDArray[np.bool_]], Iterator[tuple[States, ...]]],
    ) -> Moments:
        self.claim()
        count, total = len(self.training), None
        folds = [fold for fold in range(FOLDS) if fold != without % FOLDS]
        for fold in tqdm(folds, desc=name, unit="fold"):
            path = self.work / f"{name.replace(' ', '-')}-{count}-{fold}.npz"
            if not path.exists():
                with self.timed(f"{name} {fold}", _TEXTS):
                    keep(Moments.of(pairs(np.arange(count) % FOLDS == fold)), path)
            total = kept(path) if total is None else total + kept(path)
        assert total is not None
        return total

    def sensitivity(self) -> Doubles:
        """Second moments of the gradient of answers at the target's states, `[2 layers, w, w]`."""
        path = self.work / f"sensitivity-{self.settings.texts}.npy"
        if not path.exists():
            with self.timed("sensitivity", _TEXTS):
                found = measure(self.trainer(None))
            _keep(path, found)
        second: Doubles = np.load(path, allow_pickle=False)
        return second

    def shares(self) -> dict[str, list[float]]:
        """Share of the answers' Fisher information in each layer's keys and values."""
        traces = np.trace(self.sensitivity(), axis1=1, axis2=2)
        keys, values = (traces / traces.sum()).reshape(2, -1).tolist()
        return {"keys": keys, "values": values}

    def metric(self, y_stats: Statistics) -> Metric | None:
        """What an error of the target's state costs its answers; None: its own variance counts."""
        plan = self.settings
        if not plan.shrink:
            return None
        return Metric.of(self.sensitivity(), y_stats.scale, plan.shrink)

    def maps(self, seed: int) -> dict[int, Map]:
        """Closed forms without one fold, by rank."""
        paths = {rank: self._path(f"map-{rank}-{seed}") for rank in (FULL, *self.settings.ranks)}
        if not all(path.exists() for path in (*paths.values(), self._directions(seed))):
            total = self.moments(without=seed)
            metric = self.metric(total.y_stats)
            with self.timed(f"closed forms {seed}", _CLOSED):
                plan = self.settings
                best = self._fit(total, metric, plan.ranks, plan.directions, paths)
                _keep(self._directions(seed), best.numpy())
        return self._read(paths)

    def _fit(
        self,
        total: Moments,
        metric: Metric | None,
        ranks: Sequence[int],
        directions: int,
        paths: dict[int, Path],
    ) -> Tensor:
        """Fits and writes closed forms from moments; returns the directions found."""
        source, target, plan = self.source.layout, self.target.layout, self.settings
        columns = source_columns(source, plan.layers or source.layers)
        made, best = closed_forms(
            total, source, target, ranks, plan.ridge, columns, metric, directions
        )
        norm = key_norm_weights(self.target.decoder, target)
        for rank, one in made.items():
            if norm is not None:
                one.take_key_norm(norm, total)
            write(paths[rank], one)
        return best

    def _read(self, paths: dict[int, Path]) -> dict[int, Map]:
        source, target = self.source.layout, self.target.layout
        return {rank: load(path.read_bytes(), source, target) for rank, path in paths.items()}

    # -- control: a source that has learnt nothing -------------------------------------------------

    @cached_property
    def untrained(self) -> LM:
        """The source with random weights."""
        made = untrained(self.source.path, _UNTRAINED_SEED, self.source.layout.tokens)
        assert isinstance(made, LM)
        return made

    def untrained_maps(self) -> dict[int, Map]:
        """As `maps(0)`, from the untrained source: the whole matrix and the rank `coded`.

        Its states are not kept, only their moments.
        """
        ranks = (FULL, self.settings.coded)
        paths = {rank: self._path(f"untrained-{rank}") for rank in ranks}
        if not all(path.exists() for path in paths.values()):
            total = self._moments(_UNTRAINED + "moments", 0, self._untrained_pairs)
            metric = self.metric(total.y_stats)
            with self.timed(_UNTRAINED + "closed forms", _CLOSED):
                self._fit(total, metric, ranks[1:], 0, paths)
        return self._read(paths)

    def _untrained_pairs(
        self, chosen: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]]:
        rows = np.flatnonzero(chosen)
        for begin in range(0, len(rows), _CHUNK):
            some = rows[begin : begin + _CHUNK]
            texts = [self.lessons[index].text for index in some]
            read = [paired_tokens(self.untrained, self.target, text) for text in texts]
            y = self.training.y[some]
            yield np.concatenate(aligned_states(self.untrained, read)), y[present(y)]

    def _path(self, name: str) -> Path:
        return self.work / f"{name}-{self.settings.named(*_CLOSED)}.safetensors"

    def directions(self, seed: int) -> Tensor:
        """The source's best directions, as `maps` found them, `[d_s, k]`."""
        return torch.from_numpy(np.load(self._directions(seed), allow_pickle=False))

    def _directions(self, seed: int) -> Path:
        return self._path(f"directions-{self.settings.directions}-{seed}").with_suffix(".npy")

    # -- through the frozen target -----------------------------------------------------------------

    def tuned(self, rank: int, report: Callable[[Map], float] | None = None) -> Map:
        """A closed form trained on by the KL of answers through the frozen target."""
        source, target, plan = self.source.layout, self.target.layout, self.settings
        path = self._path(f"tuned-{rank}-{plan.named(*_TUNED)}")
        if not path.exists():
            start = self.maps(0)[rank]
            made = Tuned(start, self.directions(0))
            trainer = self.trainer(made, plan.steps, f"state-{path.stem}")
            with self.timed(f"tuned {rank}", _CLOSED + _TUNED):
                trainer.run(report and (lambda: {"accuracy": report(made.merged())}))
            write(path, made.merged())
        return load(path.read_bytes(), source, target)


def _keep(path: Path, array: Doubles | npt.NDArray[np.float32]) -> None:
    blob = BytesIO()
    np.save(blob, array, allow_pickle=False)
    write_files(path.parent, {path.name: blob.getvalue()})
