"""Makes a bundle's canary set: frames of pictures, with the large model's answers (torch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from projector.bundle.canary import CanaryFrame, CanarySet
from projector.calibration.disagreement import Comparison
from projector.codec.answers import same_answer
from projector.codec.encoder import Encoder
from projector.models.lm import LM
from projector.models.vlm import VLM
from projector.serving.backends import Backend
from projector.training.dataset import Asked, Dataset
from protos.errors import ConfigError
from protos.header import Header, pack_header
from protos.points import OperatingPoint
from protos.process.progress import Progress

FRAMES = 48
"""Default number of frames in a set."""
ANSWER_TOKENS = 16
_AT_ONCE = 8


@dataclass(frozen=True)
class Made:
    """A canary set, and how often a frame's answer equals its picture's.

    Attributes:
        frames: the canary set.
        agreement: share of frames whose answer equals the picture's.
    """

    frames: CanarySet
    agreement: float


def canary_frames(
    source: VLM,
    target: VLM,
    encoder: Encoder,
    backend: Backend,
    data: Dataset,
    default_point: int,
    most: int = FRAMES,
    max_new_tokens: int = ANSWER_TOKENS,
) -> Made:
    """Encode pictures with one question each; ask the large model about picture and frame.

    Args:
        source: the edge model.
        target: the large model.
        encoder: the bundle's edge half.
        backend: runs its cloud half.
        data: pictures; those without questions are skipped.
        default_point: index of the frames' operating point.
        most: most frames in the set.
        max_new_tokens: longest answer.

    Raises:
        ConfigError: no picture has a question, or the point sends no latents.
    """
    point = encoder.point(default_point)
    if point.kind != "latent":
        raise ConfigError(
            f"a canary set holds frames of latents; the default point {point.name} sends "
            f"{point.kind}"
        )
    chosen = [index for index in range(len(data)) if data.asked(index)][:most]
    if not chosen:
        raise ConfigError(f"{data.folder}: no picture has a question, and a canary set needs some")
    between = Comparison(source, target, encoder, backend, max_new_tokens)
    frames: list[CanaryFrame] = []
    with Progress("canary set", len(chosen), "picture") as shown:
        for first in range(0, len(chosen), _AT_ONCE):
            some = chosen[first : first + _AT_ONCE]
            asked = [
                data.asked(index)[(first + place) % len(data.asked(index))]
                for place, index in enumerate(some)
            ]
            frames += _ask(between, data, point, asked, first)
            shown.advance(len(some))
    same = sum(same_answer(frame.answer, frame.seen) for frame in frames)
    return Made(CanarySet(max_new_tokens, tuple(frames)), same / len(frames))


def canary_set(
    source: VLM | LM,
    target: VLM | LM,
    encoder: Encoder,
    backend: Backend,
    data: Dataset,
    default_point: int,
    most: int = FRAMES,
) -> CanarySet | None:
    """As `canary_frames`, but None for models that read texts, or without questions.

    Args:
        source: as in `canary_frames`; so are the others.
        target: the large model.
        encoder: the bundle's edge half.
        backend: runs its cloud half.
        data: pictures or texts.
        default_point: index of a point.
        most: most frames in the set; 0 for no set.
    """
    asks = any(data.asked(index) for index in range(len(data)))
    if not most or not asks or encoder.point(default_point).kind != "latent":
        return None
    if not isinstance(source, VLM) or not isinstance(target, VLM):
        return None
    return canary_frames(source, target, encoder, backend, data, default_point, most).frames


def _ask(
    between: Comparison, data: Dataset, point: OperatingPoint, asked: list[Asked], first: int
) -> list[CanaryFrame]:
    """Canary frames of some pictures, with question and both answers."""
    pictures = [data.picture(one.picture) for one in asked]
    texts, rows = [one.text for one in asked], np.arange(len(asked))
    source, target, encoder = between.source, between.target, between.encoder
    seen = between.answers(target.prefill(pictures, attention=False).layers(), rows, texts)
    encoded = [encoder.encode(s, point) for s in source.states(source.prefill(pictures))]
    read = [
        encoder.scatter(encoder.decode(one.payload, one.kept, point), one.kept) for one in encoded
    ]
    keys, values = between.backend.project(
        np.stack(read), np.stack([one.kept for one in encoded]), target.positions
    )
    answers = between.answers(target.scene_cache(keys, values), rows, texts)
    packed = [
        pack_header(
            Header(point.index, first + place, one.kept, distortion=one.distortion), one.payload
        )
        for place, one in enumerate(encoded)
    ]
    return [
        CanaryFrame(header, payload, text, told, answer)
        for (header, payload), text, told, answer in zip(packed, texts, seen, answers, strict=True)
    ]
