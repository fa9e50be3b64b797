"""Finds where the cloud model's answer from a frame differs from the picture's: a guard's data.

`projector/calibration/learn_risk.py` learns the risk from these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from projector.codec.answers import same_answer
from projector.codec.encoder import Encoder
from projector.codec.risk import features, received_features
from projector.models.cache import LayerCache
from projector.models.vlm import VLM
from projector.serving.backends import Backend
from protos.errors import ConfigError
from protos.points import OperatingPoint

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.integer]
R = TypeVar("R", bound="Rows")
Wanted = tuple[str, str]
"""A question and its right answer."""

FORMAT = 3
"""Version of the rows, their features and `unusual`; rows kept in another are asked again."""
_COPIED_BYTES = 1 << 28
"""Most bytes of copied caches at a time: every question gets a copy of its picture's."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One row per question about a frame at one operating point.

    Attributes:
        found: features of the device's risk, `[n, F]`.
        received: features of the service's risk, `[n, F]`.
        picture: number of the picture, `[n]`.
        question: number of the question about that picture, `[n]`.
        point: index of the operating point, `[n]`.
        unusual: whether the picture was altered (`unusual.py`), `[n]`.
        disagree: whether the frame's answer differs from the picture's, `[n]`.
        right_frame, right_picture: whether the cloud model's answers are right, `[n]`.
        frame_bytes: payload of the frame, `[n]`.
    """

    found: npt.NDArray[np.float32]
    received: npt.NDArray[np.float32]
    picture: npt.NDArray[np.int64]
    question: npt.NDArray[np.int64]
    point: npt.NDArray[np.int64]
    unusual: Bools
    disagree: Bools
    right_frame: Bools
    right_picture: Bools
    frame_bytes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.picture)

    @classmethod
    def join(cls: type[R], parts: Sequence[R]) -> R:
        """All rows of all parts."""
        names = [entry.name for entry in fields(cls)]
        return cls(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})

    def where(self: R, chosen: Bools) -> R:
        """Some of the rows."""
        return type(self)(**{name: value[chosen] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Comparison:
    """Two models that read pictures, and the bundle between them.

    Attributes:
        source: the edge model.
        target: the frozen cloud model.
        encoder: the edge half of a bundle.
        backend: runs its cloud half.
        max_new_tokens: longest answer.
    """

    source: VLM
    target: VLM
    encoder: Encoder
    backend: Backend
    max_new_tokens: int = 16

    def rows(
        self,
        pictures: Sequence[Image.Image],
        asked: Sequence[Sequence[Wanted]],
        points: Sequence[Sequence[OperatingPoint]],
        numbers: Sequence[int],
        unusual: Sequence[bool],
    ) -> Rows:
        """Ask about some pictures, from the pictures and from their frames at some points.

        Args:
            pictures: as many as fit both models at once.
            asked: questions about each picture.
            points: points at which each picture is sent, of kind latent.
            numbers: each picture's number in the rows.
            unusual: whether each picture was altered.

        Returns:
            Rows by picture, point and question, in this order.
        """
        seen = self.source.prefill(pictures)
        states = self.source.states(seen)
        about = np.array([row for row, wanted in enumerate(asked) for _ in wanted])
        turns = np.array([turn for wanted in asked for turn in range(len(wanted))])
        texts = [text for wanted in asked for text, _ in wanted]
        truths = [truth for wanted in asked for _, truth in wanted]
        sure = self._sure(seen.layers(), about, texts)
        native = self.target.prefill(pictures, attention=False).layers()
        told = self.answers(native, about, texts)
        sent = [(row, point) for row, some in enumerate(points) for point in some]
        frames = [self.encoder.encode(states[row], point) for row, point in sent]
        read = [
            self.encoder.scatter(self.encoder.decode(frame.payload, frame.kept, point), frame.kept)
            for frame, (_, point) in zip(frames, sent, strict=True)
        ]
        kept = np.stack([frame.kept for frame in frames])
        keys, values = self.backend.project(np.stack(read), kept, self.target.positions)
        row_of = np.array([row for row, _ in sent])
        at, which = np.nonzero(row_of[:, None] == about)  # every frame with each of its questions
        given = self.answers(
            self.target.scene_cache(keys, values), at, [texts[question] for question in which]
        )
        centre = self.encoder.centre
        moved = [
            self.encoder.project(self.encoder.on_grid(state).flat()) - centre for state in states
        ]
        arrived = [
            latents[frame.kept] - centre[frame.kept]
            for latents, frame in zip(read, frames, strict=True)
        ]
        pairs = list(zip(at, which, strict=True))
        return Rows(
            found=np.stack(
                [
                    features(frames[f].distortion, texts[q], sure[q], moved[about[q]])
                    for f, q in pairs
                ]
            ),
            received=np.stack(
                [received_features(frames[f].distortion, texts[q], arrived[f]) for f, q in pairs]
            ),
            picture=np.array(numbers)[row_of[at]],
            question=turns[which],
            point=np.array([point.index for _, point in sent])[at],
            unusual=np.array(unusual, dtype=np.bool_)[row_of[at]],
            disagree=np.array(
                [not same_answer(a, told[q]) for a, q in zip(given, which, strict=True)]
            ),
            right_frame=np.array(
                [same_answer(a, truths[q]) for a, q in zip(given, which, strict=True)]
            ),
            right_picture=np.array(
                [same_answer(a, truth) for a, truth in zip(told, truths, strict=True)]
            )[which],
            frame_bytes=np.array([len(frame.payload) for frame in frames])[at],
        )

    def _sure(self, layers: Sequence[LayerCache], rows: Places, texts: Sequence[str]) -> Floats:
        """The edge model's distributions for the first tokens of its own answers, `[Q, V]`."""
        ids = [self.source.question_ids(text) for text in texts]
        parts = [
            self.source.first_token(_of(layers, rows[some]), ids[some])
            for some in _slices(len(rows), layers)
        ]
        found: Floats = np.concatenate(parts)
        return found

    def answers(
        self, layers: Sequence[LayerCache], rows: Places, texts: Sequence[str]
    ) -> list[str]:
        """The cloud model's answers, each from the cache row that its question is about."""
        ids = [self.target.question_ids(text) for text in texts]
        answers = []
        for some in _slices(len(rows), layers):
            made = self.target.answer(_of(layers, rows[some]), ids[some], self.max_new_tokens)
            answers += [self.target.text(one) for one in made]
        return answers


def _slices(count: int, layers: Sequence[LayerCache]) -> list[slice]:
    """Slices of rows, so that the copies of a cache stay within `_COPIED_BYTES`."""
    each = sum(part[0].numel() * part.element_size() for layer in layers for part in layer)
    size = max(1, _COPIED_BYTES // each)
    return [slice(begin, begin + size) for begin in range(0, count, size)]


def _of(layers: Sequence[LayerCache], rows: Places) -> list[LayerCache]:
    """The cache with one row for each of `rows`."""
    chosen = rows.tolist()
    return [(keys[chosen], values[chosen]) for keys, values in layers]


def lesson_points(
    encoder: Encoder, ladder: Sequence[int], default: int, rng: np.random.Generator
) -> list[OperatingPoint]:
    """The default point and another point of the ladder: an agent may send at any of them.

    A risk learnt at one point alone does not know what the others lose.

    Args:
        encoder: holds the points.
        ladder: indices of the ladder's points.
        default: index of the default point.
        rng: draws the other point.

    Raises:
        ConfigError: the default point sends no latents.
    """
    usual = encoder.point(default)
    if usual.kind != "latent":
        raise ConfigError(f"the guard watches frames of latents; the default point is {usual.kind}")
    others = [encoder.point(i) for i in ladder if i != default]
    others = [point for point in others if point.kind == "latent"]
    return [usual, *([others[int(rng.integers(len(others)))]] if others else [])]
