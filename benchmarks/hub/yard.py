"""The yard for the hub bench: folders of pictures, what each model saw, and who is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from projector.bundle.load import Bundle
from projector.calibration.ladder import Judge
from projector.codec.arrays import Floats
from projector.codec.encoder import Encoder
from projector.hub.hub import Hub, Member, write_hub
from projector.hub.make import latents_of, make_space, onto_grid
from projector.hub.photos import Seen, Some, see
from projector.models.vlm import VLM
from projector.serving import backends
from projector.serving.backends import Backend
from projector.training.corpus import Corpus
from projector.training.dataset import Dataset
from projector.training.fit import untrained
from reference.demo.halves import BUNDLES, MODELS
from reference.export_yard import export

QUESTIONS = 6
FOUNDER = "edge-a"
SPLITS = {"train": ("train", 0), "test": ("test", 0), "shifted": ("shifted", 0)}
READING_PICTURES = 1024
States = npt.NDArray[np.floating]


@dataclass
class Yard:
    """Models, pictures and the hub, each made when first asked for.

    Attributes:
        work: folder of pictures, states and the hub.
        pictures: pictures of the test split that are asked about.
        shifted: pictures of the shifted split that are asked about.
        threads: CPU threads.
    """

    work: Path
    pictures: int
    shifted: int
    threads: int
    _models: dict[str, VLM] = field(default_factory=dict)
    _judges: dict[tuple[str, str, int], Judge] = field(default_factory=dict)

    def model(self, name: str) -> VLM:
        """A model by its folder's name; `random edge-c` is `edge-c` with random weights."""
        if name not in self._models:
            if name.startswith("random "):
                made = untrained(MODELS / name.removeprefix("random "), 2, None)
                assert isinstance(made, VLM)
                self._models[name] = made
            else:
                self._models[name] = VLM.load(MODELS / name)
        return self._models[name]

    def some(self, split: str, count: int) -> Some:
        """The first pictures of a split, rendered once."""
        folder = self.work / f"{split}-{count}"
        if not (folder / "questions.jsonl").exists():
            name, start = SPLITS[split]
            export(folder, name, start, count, QUESTIONS)
        return Some(Dataset(folder), tuple(range(count)))

    def asked(self, split: str) -> Some:
        """The pictures of a split that are asked about."""
        return self.some(split, self.pictures if split == "test" else self.shifted)

    def saw(self, name: str, some: Some) -> Seen:
        """What a model saw in some pictures."""
        tag = name.partition(" ")[0] if name.startswith("random ") else ""
        return see(self.model(name), some, self.work / "states", name, tag)

    def bundle(self, name: str) -> Bundle:
        """An edge model's own bundle."""
        layout, target = self.model(name).layout, self.model("cloud").layout
        return Bundle.load(BUNDLES / f"{name}-cloud", layout, target)

    @cached_property
    def hub(self) -> Hub:
        """The hub of the founder's bundle."""
        target, folder = self.model("cloud").layout, self.work / "hub"
        if not (folder / "hub.json").exists():
            some, bundle = self.some("train", READING_PICTURES), self.bundle(FOUNDER)
            x, y = self.saw(FOUNDER, some).x, self.saw("cloud", some).x
            space, reading = make_space(bundle, target, x, y)
            info = bundle.info
            member = Member(info.id, info.version, info.digest, info.source.fingerprint)
            told = {"explained": reading.explained}
            write_hub(
                folder,
                id="yard",
                version=1,
                target=target,
                space=space,
                cloud=bundle.cloud,
                members=[member],
                certificate={"reading": told},
            )
        return Hub.load(folder, target)

    def training(self, name: str, count: int) -> tuple[States, Floats, Floats]:
        """The first `count` training pictures, all of one larger folder.

        Returns:
            The model's states on its own grid; the founder's latents of the same; latents read
            from the large model's own cache.
        """
        some = self.some("train", READING_PICTURES)
        mine, founder = (self.saw(one, some).x[:count] for one in (name, FOUNDER))
        space, target = self.hub.space, self.model("cloud").layout
        y = onto_grid(self.saw("cloud", some).x[:count], target.grid, space.grid)
        return mine, latents_of(self.bundle(FOUNDER), founder), space.read(y)

    def on_grid(self, name: str, x: States) -> States:
        """A model's states on the hub's grid."""
        return onto_grid(x, self.model(name).layout.grid, self.hub.space.grid)

    def backend(self, name: str) -> Backend:
        """The hub's cloud half, for latents of an edge model."""
        sent = replace(self.model(name).layout, grid=self.hub.space.grid)
        target = self.model("cloud").layout
        made = backends.get("onnxruntime")
        rank = self.hub.space.rank
        return made(self.hub.cloud, target, rank, threads=self.threads, source=sent)

    def judge(self, name: str, split: str, own: bool) -> Judge:
        """Asks about a split, through the hub or through the edge model's own bundle."""
        key = name, split, int(own)
        if key not in self._judges:
            some = self.asked(split)
            mine, cloud = self.saw(name, some), self.saw("cloud", some)
            backend = (
                self.bundle(name).backend("onnxruntime", self.threads)
                if own
                else self.backend(name)
            )
            corpus = Corpus(mine.x, cloud.x, mine.attention)
            self._judges[key] = Judge(
                self.model(name), self.model("cloud"), backend, corpus, some.questions, QUESTIONS
            )
        return self._judges[key]

    def answers(self, judge: Judge, latents: Floats) -> list[int]:
        """Which questions are right from unrounded latents `[n, N, r]`: 1 or 0 each."""
        right, _ = judge.answers(latents, np.ones(latents.shape[:2], dtype=np.bool_))
        found: list[int] = right.ravel().astype(int).tolist()
        return found


def points(judge: Judge, encoder: Encoder) -> list[dict[str, float | str | list[int]]]:
    """Every entropy-coded point on a judge's pictures: bytes, and which questions are right."""
    found: list[dict[str, float | str | list[int]]] = []
    for point in encoder.points:
        if point.quantizer != "uniform":
            continue
        sent = judge.measure(encoder, point)
        right: list[int] = sent.right.ravel().astype(int).tolist()
        found.append({"point": point.name, "bytes": sent.measured.payload_bytes, "right": right})
    return found
