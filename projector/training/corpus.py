"""Paired caches of the same inputs, from the source and the target model.

Pairs are made, stored in shards and read back. A shard is a safetensors file whose metadata names
both models; an existing shard is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

from projector.models.foreign import foreign, plain_file
from projector.models.vlm import VLM
from projector.training import preflight
from projector.training.ragged import Ragged
from protos.errors import CorpusError
from protos.layout import KVLayout
from protos.process.files import write_files
from protos.process.progress import Progress

SHARD_PICTURES = 256
REMAKE = "remove it, and it is made again"
"""What to do about a damaged shard."""
_BATCH = 32

Picture = Callable[[int], Image.Image]
"""Gives the picture of an index."""


@dataclass(frozen=True)
class Corpus:
    """n pictures, N image tokens each; or n texts of at most N tokens.

    Attributes:
        x: `[n, N, d_s]` float16, the source's flat states, keys un-rotated. `Ragged` for texts:
            read from disk when indexed, NaN past a text's end.
        y: `[n, N, d_r]` float16, the target's flat states; `Ragged` for texts too.
        attention: `[n, N]` float16, received attention in the source (uniform for texts).
    """

    x: Any
    y: Any
    attention: npt.NDArray[np.float16]

    def __len__(self) -> int:
        """The number of pictures or texts."""
        return len(self.x)

    @property
    def ragged(self) -> bool:
        """Whether these are texts."""
        return isinstance(self.x, Ragged)

    def part(self, index: slice | npt.NDArray[np.bool_]) -> Corpus:
        """Some of the pictures or texts."""
        x, y = (
            states.part(index) if isinstance(states, Ragged) else states[index]
            for states in (self.x, self.y)
        )
        return Corpus(x, y, self.attention[index])


def flat_states(
    vlm: VLM, pictures: list[Image.Image], attention: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Flat un-rotated states `[B, N, d]` of some pictures, and received attention `[B, N]`."""
    states = vlm.states(vlm.prefill(pictures, attention=attention))
    return np.stack([s.flat() for s in states]), np.stack([s.attention for s in states])


def made_of(source: KVLayout, target: KVLayout, inputs: str) -> list[dict[str, str]]:
    """The metadata of a shard: both models, and the inputs if known.

    The first is for new shards; the others, from earlier versions of layouts, are accepted too.
    """
    about = {"inputs": inputs} if inputs else {}
    return [
        about | {"source": x, "target": y} for x in source.fingerprints for y in target.fingerprints
    ]


def collect(
    source: VLM,
    target: VLM,
    picture: Picture,
    count: int,
    folder: Path,
    what: str = "corpus",
    inputs: str = "",
) -> Corpus:
    """Runs both models over pictures 0 to count - 1; resumes where an earlier run stopped.

    Args:
        source: the edge model.
        target: the cloud model.
        picture: gives picture i.
        count: number of pictures.
        folder: folder of the shards.
        what: the name shown on the progress bar.
        inputs: digest of the pictures, so that shards of other pictures are not taken for these.

    Raises:
        CorpusError: no pictures; or the folder holds shards of other models or other pictures,
            damaged ones, or states that are not finite.
        DiskFullError: there was no room for a shard; the finished ones stay.
    """
    if count < 1:
        raise CorpusError("a corpus of no pictures")
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(
        np.empty((count, source.layout.tokens, source.layout.state_dim), dtype=np.float16),
        np.empty((count, target.layout.tokens, target.layout.state_dim), dtype=np.float16),
        np.empty((count, source.layout.tokens), dtype=np.float16),
    )
    pairs = made_of(source.layout, target.layout, inputs)
    numbers = corpus.x.nbytes + corpus.y.nbytes + corpus.attention.nbytes
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    preflight.room(folder, numbers - there, f"a corpus of {count} pictures")
    with Progress(what, count, "picture") as shown:
        for start in range(0, count, SHARD_PICTURES):
            path = folder / f"{start:07d}.safetensors"
            size = min(SHARD_PICTURES, count - start)
            if rows_of(path, pairs) < size:
                some = range(start, start + size)
                _make(source, target, picture, some, pairs[0], path, shown.advance)
            else:
                shown.skip(size)
            rows = slice(start, start + size)
            shard = _read(path, source.layout, target.layout, size)
            corpus.x[rows], corpus.y[rows], corpus.attention[rows] = shard
    return corpus


def rows_of(path: Path, pairs: list[dict[str, str]] | None = None) -> int:
    """How many pictures or texts a shard holds; 0 if there is no shard.

    Args:
        path: its path.
        pairs: metadata as `made_of` gives them; the shard must have one of these.

    Raises:
        CorpusError: it cannot be read, or is of others.
    """
    if not path.exists() and not path.is_symlink():
        return 0
    with opened_shard(path) as shard:
        if pairs is not None and shard.metadata() not in pairs:
            raise CorpusError(
                f"{path} was made by another pair of models (or with other tokenizers), or of "
                "other inputs; use another folder or remove it"
            )
        rows = "ends" if "ends" in shard.keys() else "x"  # noqa: SIM118  (it is no dict)
        return int(shard.get_slice(rows).get_shape()[0])


@contextmanager
def opened_shard(path: Path) -> Iterator[Any]:
    """A shard to read from.

    Raises:
        CorpusError: it is no file, no shard, or lacks what is asked of it.
    """
    plain_file(path, REMAKE, CorpusError)
    with foreign(f"{path} is not a readable shard", REMAKE, CorpusError):
        with safe_open(str(path), "np") as shard:
            yield shard


def _make(
    source: VLM,
    target: VLM,
    picture: Picture,
    indices: range,
    pair: dict[str, str],
    path: Path,
    made: Callable[[int], None],
) -> None:
    xs, ys, attentions = [], [], []
    for first in range(indices.start, indices.stop, _BATCH):
        pictures = [picture(i) for i in range(first, min(first + _BATCH, indices.stop))]
        with torch.autocast("cpu", enabled=False):
            x, attention = flat_states(source, pictures, attention=True)
            y, _ = flat_states(target, pictures, attention=False)
        xs.append(x.astype(np.float16))
        ys.append(y.astype(np.float16))
        attentions.append(attention.astype(np.float16))
        made(len(pictures))
    arrays = {"x": np.concatenate(xs), "y": np.concatenate(ys), "a": np.concatenate(attentions)}
    write_shard(path, arrays, pair, f"pictures {indices.start} to {indices.stop - 1}")


def write_shard(
    path: Path, arrays: dict[str, npt.NDArray[Any]], pair: dict[str, str], what: str
) -> None:
    """Write a shard whole or not at all.

    Args:
        path: its path.
        arrays: its tensors.
        pair: names the models and the inputs.
        what: the inputs that it holds, for the message.

    Raises:
        CorpusError: states that are not finite.
        DiskFullError: there was no room.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CorpusError(
                f"{what}: the states '{name}' hold NaN or infinity, or exceed float16"
            )
    write_files(path.parent, {path.name: save(arrays, metadata=pair)})


def _read(
    path: Path, source: KVLayout, target: KVLayout, size: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    with opened_shard(path) as shard:
        x, y, attention = (shard.get_tensor(name) for name in ("x", "y", "a"))
    want = (size, source.tokens, source.state_dim), (size, target.tokens, target.state_dim)
    if (x.shape, y.shape) != want or attention.shape != want[0][:2]:
        raise CorpusError(
            f"{path} holds states {x.shape} and {y.shape} and attention {attention.shape}, "
            f"expected {want} and {want[0][:2]}: it was made of more "
            "inputs, or by another version; use another folder or remove it"
        )
    x, y, attention = (_half(array, path) for array in (x, y, attention))
    if (attention < 0).any():
        raise CorpusError(f"{path} holds attention below 0; remove it")
    return x, y, attention


def _half(array: npt.NDArray[Any], path: Path) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16, copy=False)
    if not np.isfinite(half).all():
        raise CorpusError(f"{path} holds NaN or infinity, or exceeds float16; remove it")
    return half
