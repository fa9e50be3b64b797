"""The arms that need no wire: answers computed in this process, in batches, same weights.

`Pair.states` and `Pair.encode` also make what the arms of `wire` send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.compare.wire import Shot
from projector.bundle.load import Bundle
from projector.models.cache import LayerCache
from projector.models.pictures import read
from projector.models.vlm import VLM
from protos import distortion
from protos.points import OperatingPoint
from protos.state import KVState
from reference.demo.testset import Asked, TestSet

PICTURES_AT_ONCE = 32
MAX_NEW_TOKENS = 8

Progress = Callable[[int], None]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture at one operating point: what is sent, and what the cloud reads from it."""

    shot: Shot
    latents: Floats
    kept: npt.NDArray[np.bool_]


@dataclass
class Pair:
    """The edge model, the cloud model and the bundle between them."""

    edge: VLM
    cloud: VLM
    bundle: Bundle
    backend: Any

    @classmethod
    def load(cls, edge: Path, cloud: Path, bundle: Path) -> Pair:
        """Load all three from disk; the bundle is checked against both live layouts.

        Raises:
            BridgeError: a checkpoint or the bundle is missing, damaged or does not fit.
        """
        small, large = VLM.load(edge), VLM.load(cloud)
        loaded = Bundle.load(bundle, small.layout, large.layout)
        return cls(small, large, loaded, loaded.backend("onnxruntime", threads=0))

    # -- what is sent ----------------------------------------------------------------------------

    def states(self, pictures: Sequence[Image.Image]) -> list[KVState]:
        """The edge model's cache of every picture, RoPE removed."""
        return [s for part in _chunks(pictures) for s in self.edge.states(self.edge.prefill(part))]

    def encode(self, state: KVState, point: OperatingPoint) -> Frame:
        """Quantize one picture at one operating point, and read it back as the cloud will."""
        encoder = self.bundle.encoder
        made = encoder.encode(state, point)
        latents = encoder.scatter(encoder.decode(made.payload, made.kept, point), made.kept)
        shot = Shot(point.index, made.payload, made.kept, made.distortion)
        return Frame(shot, latents, made.kept)

    # -- what the cloud model makes of it --------------------------------------------------------

    def project(self, frames: Sequence[Frame]) -> tuple[Floats, Floats]:
        """Keys and values for the cloud model, `[layers, B, kv_heads, N, head_dim]`, rotated."""
        latents = np.stack([f.latents for f in frames])
        kept = np.stack([f.kept for f in frames])
        keys, values = self.backend.project(latents, kept, self.cloud.positions)
        return keys, values

    def injected(
        self, frames: Sequence[Frame], asked: Sequence[tuple[int, str]], progress: Progress
    ) -> list[str]:
        """Answers of the cloud model from injected caches.

        Args:
            frames: one per picture.
            asked: for every question, the row of `frames` to inject and the text.
            progress: called with the number of questions just answered.
        """

        def caches(rows: Sequence[int]) -> list[LayerCache]:
            keys, values = self.project([frames[row] for row in rows])
            return self.cloud.scene_cache(keys, values)

        return _answer(self.cloud, caches, asked, progress)

    def mean_state(self, test: TestSet, progress: Progress) -> list[str]:
        """Answers from the mean latent of the calibration pictures, the same for every picture."""
        tokens, rank = self.edge.image_tokens, self.bundle.encoder.rank
        kept = np.ones(tokens, dtype=np.bool_)
        mean = Frame(Shot(0, b""), np.zeros((tokens, rank), dtype=np.float32), kept)
        return self.injected([mean], [(0, q.text) for q in test.asked], progress)

    def other_picture(
        self, test: TestSet, frames: Sequence[Frame], others: Sequence[int], progress: Progress
    ) -> list[str]:
        """Answers from another picture's cache; `others` names that picture for every question."""
        asked = [(j, q.text) for j, q in zip(others, test.asked, strict=True)]
        return self.injected(frames, asked, progress)

    def blind(self, test: TestSet, progress: Progress) -> list[str]:
        """Answers of the cloud model without a picture: constant prefix, then the question."""
        return blind(self.cloud, test.asked, progress)

    def edge_only(self, test: TestSet, progress: Progress) -> list[str]:
        """Answers of the edge model itself, which sees the picture."""
        return seeing(self.edge, test.pictures, test.asked, progress)

    # -- fidelity --------------------------------------------------------------------------------

    def fidelity(
        self, pictures: Sequence[Image.Image], frames: Sequence[Frame]
    ) -> tuple[float, list[dict[str, float]]]:
        """How far the projected cache is from the cloud model's own cache.

        Returns:
            The mean relative L2 error over pictures, and per layer `{"keys": …, "values": …}`.
        """
        whole: list[float] = []
        layers: list[list[tuple[float, float]]] = []
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            part = slice(start, start + PICTURES_AT_ONCE)
            true = self.cloud.prefill(pictures[part], attention=False)
            keys, values = self.project(frames[part])
            first = true.prefix_tokens
            true_keys = np.stack([k[:, :, first:].numpy() for k in true.keys])
            true_values = np.stack([v[:, :, first:].numpy() for v in true.values])
            for b in range(keys.shape[1]):
                pairs = [(true_keys[:, b], keys[:, b]), (true_values[:, b], values[:, b])]
                joined = [np.concatenate([x[i].ravel() for x in pairs]) for i in (0, 1)]
                whole.append(float(distortion.relative_l2(joined[0], joined[1])))
                layers.append(
                    [
                        (
                            float(distortion.relative_l2(pairs[0][0][n], pairs[0][1][n])),
                            float(distortion.relative_l2(pairs[1][0][n], pairs[1][1][n])),
                        )
                        for n in range(keys.shape[0])
                    ]
                )
        mean = np.mean(np.asarray(layers), axis=0)
        return float(np.mean(whole)), [
            {"keys": round(float(k), 4), "values": round(float(v), 4)} for k, v in mean
        ]

    # -- work ------------------------------------------------------------------------------------

    def flops(self, picture: Image.Image, question: str, frame: Frame) -> dict[str, float]:
        """Floating point operations up to the first token, batch 1, of both arms.

        Counted by torch over matrix products, convolutions and attention (a multiplication and an
        addition are two). The projector runs in ONNX Runtime; its torch twin is counted.

        Returns:
            `picture` (see the picture, read the question), `injected` (project, read the question)
            and `project`, the projector's share of `injected`.
        """
        from torch.utils.flop_counter import FlopCounterMode

        ids = self.cloud.question_ids(question)
        keys, values = self.project([frame])
        cache = self.cloud.scene_cache(keys, values)
        with FlopCounterMode(display=False) as seeing_flops:
            self.cloud.answer_pictures([picture], [ids], 1)
        with FlopCounterMode(display=False) as reading_flops:
            self.cloud.answer(cache, [ids], 1)
        twin = self.bundle.backend("torch")
        with FlopCounterMode(display=False) as project_flops:
            twin.project(frame.latents[None], frame.kept[None], self.cloud.positions)
        project = float(project_flops.get_total_flops())
        return {
            "picture": float(seeing_flops.get_total_flops()),
            "injected": float(reading_flops.get_total_flops()) + project,
            "project": project,
        }


def seeing(
    vlm: VLM, pictures: Sequence[Image.Image], asked: Sequence[Asked], progress: Progress
) -> list[str]:
    """Answers of a model that sees the pictures: each is prefilled once, then asked about."""

    def caches(rows: Sequence[int]) -> list[LayerCache]:
        return vlm.prefill([pictures[row] for row in rows], attention=False).layers()

    return _answer(vlm, caches, [(q.picture, q.text) for q in asked], progress)


def blind(vlm: VLM, asked: Sequence[Asked], progress: Progress) -> list[str]:
    """Answers of a model without a picture: constant prefix, then the question."""

    def caches(rows: Sequence[int]) -> list[LayerCache]:
        size = len(rows)
        return [
            (key.expand(size, -1, -1, -1), value.expand(size, -1, -1, -1))
            for key, value in vlm.constant_prefix()
        ]

    return _answer(vlm, caches, [(q.picture, q.text) for q in asked], progress)


def decoded_answers(
    vlm: VLM, files: Sequence[bytes], asked: Sequence[Asked], progress: Progress
) -> list[str]:
    """Answers of a model that sees the decoded files of some pictures."""
    pictures = [read(file) for file in files]
    return seeing(vlm, pictures, asked, progress)


def _chunks(pictures: Sequence[Image.Image]) -> Iterator[Sequence[Image.Image]]:
    for start in range(0, len(pictures), PICTURES_AT_ONCE):
        yield pictures[start : start + PICTURES_AT_ONCE]


def _answer(
    vlm: VLM,
    caches: Callable[[Sequence[int]], list[LayerCache]],
    asked: Sequence[tuple[int, str]],
    progress: Progress,
) -> list[str]:
    """Answers in the order of `asked`; `caches` builds one row for each picture it is given."""
    answers = [""] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: asked[i][0])
    groups: list[list[int]] = []
    rows_in_last: set[int] = set()
    for i in order:
        row = asked[i][0]
        crowded = len(rows_in_last | {row}) > PICTURES_AT_ONCE or (
            groups and len(groups[-1]) >= 8 * PICTURES_AT_ONCE
        )
        if not groups or crowded:
            groups.append([])
            rows_in_last = set()
        groups[-1].append(i)
        rows_in_last.add(row)
    for group in groups:
        rows = sorted({asked[i][0] for i in group})
        place = {row: n for n, row in enumerate(rows)}
        index = [place[asked[i][0]] for i in group]
        layers = [(key[index], value[index]) for key, value in caches(rows)]
        ids = [vlm.question_ids(asked[i][1]) for i in group]
        for i, answer in zip(group, vlm.answer(layers, ids, MAX_NEW_TOKENS), strict=True):
            answers[i] = vlm.text(answer)
        progress(len(group))
    return answers
