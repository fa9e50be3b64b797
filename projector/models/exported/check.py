"""Checks an opened edge export against the witness in it: a picture with its cache and answer.

A runtime, a provider or a driver that computes something else is found before the first frame.
The check is also the model's first run, which builds what a GPU needs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from projector.models.exported.manifest import AGAIN, WITNESS
from projector.models.exported.vlm import ExportedVLM
from projector.models.foreign import foreign
from projector.models.witness import TOLERANCES
from protos.errors import SelfCheckError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Known:
    """One input and what the checkpoint in torch makes of it.

    Attributes:
        picture: uint8 `[H, W, 3]`.
        question: ids.
        layers: cache of prefix and picture, `[layers, 2, 1, kv_heads, T, head_dim]`.
        attention: `[N]`.
        first: distribution of the answer's first token, `[V]`.
        answer: ids of the greedy answer.
    """

    picture: npt.NDArray[np.uint8]
    question: npt.NDArray[np.int64]
    layers: Floats
    attention: Floats
    first: Floats
    answer: npt.NDArray[np.int64]

    def save(self, file: Path) -> None:
        """Write it."""
        np.savez(file, **asdict(self))

    @classmethod
    def load(cls, file: Path) -> Known:
        """Read what `save` wrote.

        Raises:
            ModelError: it is not such a file.
        """
        with foreign(file, AGAIN), np.load(file, allow_pickle=False) as held:
            return cls(**{name: held[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Difference:
    """How far a run is from what is known.

    Attributes:
        cache: largest difference of a token's keys or values in a layer, in median norms.
        variation: total variation of the first token's distribution.
        attention: largest difference of a token's share.
        same: whether the answer is the same.
    """

    cache: float
    variation: float
    attention: float
    same: bool


def difference(vlm: ExportedVLM, known: Known) -> Difference:
    """Run a witness and compare."""
    read = vlm.prefill(Image.fromarray(known.picture))
    question = known.question.tolist()
    answer = vlm.answer(read.layers, question, max(1, len(known.answer)))
    first = vlm.first_token(read.layers, question)
    return Difference(
        cache=caches_apart(read.layers, known.layers),
        variation=float(np.abs(first - known.first).sum() / 2),
        attention=float(np.abs(read.attention - known.attention).max()),
        same=answer[: len(known.answer)] == known.answer.tolist(),
    )


def caches_apart(mine: Floats, its: Floats) -> float:
    """Largest difference of one token's keys or values in a layer, relative to the median norm."""
    if mine.shape != its.shape:
        return float("inf")
    apart = np.linalg.norm(mine - its, axis=(3, 5))
    usual = np.median(np.linalg.norm(its, axis=(3, 5)), axis=-1, keepdims=True)
    return float((apart / np.maximum(usual, np.finfo(np.float32).tiny)).max())


def require(vlm: ExportedVLM, folder: Path) -> Difference:
    """Check an opened export.

    Raises:
        SelfCheckError: it computes something else than the checkpoint did.
        ModelError: its witness cannot be read, or it cannot be run.
    """
    known = Known.load(folder / WITNESS)
    with foreign(f"{folder} cannot be run on {vlm.running.device}", "try --device cpu", mixed=True):
        found = difference(vlm, known)
    # TensorRT multiplies with ten bits of mantissa, as float16 has.
    dtype = "float16" if vlm.running.device == "tensorrt" else vlm.layout.cache_dtype
    allowed: Any = TOLERANCES[dtype]
    if not (found.cache <= allowed.cache and found.variation <= allowed.variation):
        raise SelfCheckError(
            f"{folder} on {vlm.running.device} does not compute what its checkpoint does: a "
            f"token's cache differs by {found.cache:.2g} of a usual one ({allowed.cache:g} is "
            f"rounding), the first token's distribution by {found.variation:.2g} "
            f"({allowed.variation:g}); use --device cpu, or export again"
        )
    return found
