"""Pictures to join by: which are fitted to, which are kept apart, and what a model saw in each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from projector.hub.half import LEAST_PICTURES, different
from projector.models.vlm import VLM
from projector.training.corpus import (
    SHARD_PICTURES,
    flat_states,
    opened_shard,
    rows_of,
    write_shard,
)
from projector.training.dataset import LEAST_QUESTIONS, QUESTIONS, Dataset, Texts
from protos.errors import ConfigError, CorpusError, FitError
from protos.process.progress import Progress

_BATCH = 32
_MOST_JUDGED = 0.5  # of the pictures, where the same folder serves to fit and to judge


@dataclass(frozen=True)
class Some:
    """Some pictures of a folder, in an order of their own.

    Attributes:
        data: the folder.
        indices: into it.
    """

    data: Dataset
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def digest(self) -> str:
        """SHA-256 hex of their contents in their order."""
        contents = self.data.contents
        return hashlib.sha256("".join(contents[i] for i in self.indices).encode()).hexdigest()

    def questions(self, index: int, count: int, seed: int) -> Sequence[tuple[str, str]]:
        """As `Dataset.questions`, of picture `index` of these."""
        return self.data.questions(self.indices[index], count, seed)


def apart(
    data: Dataset, held: Dataset | None, fitted: int, judged: int, per_picture: int
) -> tuple[Some, Some]:
    """Pictures to fit to, and others to judge by, no picture in both.

    Args:
        data: pictures; equal ones count once.
        held: other pictures, with questions, to judge by; None to take them from `data`, at most
            half of it.
        fitted: most pictures to fit to; 0 for all.
        judged: most pictures to judge by.
        per_picture: questions asked of each of these.

    Raises:
        CorpusError: fewer than four different pictures to fit to.
        FitError: fewer than 384 questions about the pictures kept apart.
        ConfigError: the folder holds texts.
    """
    for folder in (data, held):
        if isinstance(folder, Texts):
            raise ConfigError(f"{folder.folder} holds texts: a hub is of pictures")
    mine = different(data.contents)
    source = data if held is None else held
    asked = [i for i in different(source.contents) if source.asked(i)]
    if held is None:
        most = min(judged, int(len(mine) * _MOST_JUDGED), len(asked))
        # Spread over the folder: neighbours by name are often neighbours in time.
        kept = [asked[place * len(asked) // most] for place in range(most)] if most else []
        seen = {data.contents[i] for i in kept}
    else:
        kept = asked[:judged]
        seen = {held.contents[i] for i in kept}
    rest = [i for i in mine if data.contents[i] not in seen]
    rest = rest[:fitted] if fitted else rest
    questions = sum(len(source.asked(i)[:per_picture]) for i in kept)
    if questions < LEAST_QUESTIONS:
        raise FitError(
            f"{questions} questions about {len(kept)} pictures kept apart: a certificate takes "
            f"{LEAST_QUESTIONS}. Write {source.folder / QUESTIONS}, or let the large model answer "
            f"with `projector label {source.folder}`; or give more pictures"
        )
    if len(rest) < LEAST_PICTURES:
        raise CorpusError(
            f"{data.folder}: {len(rest)} different pictures are left to fit to, at least "
            f"{LEAST_PICTURES} needed; 16 to 64 do well"
        )
    return Some(data, tuple(rest)), Some(source, tuple(kept))


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model saw in some pictures.

    Attributes:
        x: flat states, keys un-rotated, `[n, N, d]` float16.
        attention: received attention, `[n, N]` float16.
    """

    x: npt.NDArray[np.float16]
    attention: npt.NDArray[np.float16]


def see(model: VLM, some: Some, work: Path | None, what: str, name: str = "") -> Seen:
    """Run a model over pictures; shards of an earlier run are read from `work` instead.

    Args:
        model: the model.
        some: the pictures.
        work: folder of the shards; None to keep none.
        what: name of the model on the progress bar.
        name: tells models of one layout apart, such as one with random weights.

    Raises:
        CorpusError: no pictures, a damaged shard, or states that are not finite.
        PictureError: a picture cannot be read.
    """
    if not len(some):
        raise CorpusError("no pictures")
    about = {"model": model.layout.fingerprint + name, "inputs": some.digest}
    stem = hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest()[:16]
    xs, attentions = [], []
    with Progress(what, len(some), "picture") as shown:
        for start in range(0, len(some), SHARD_PICTURES):
            size = min(SHARD_PICTURES, len(some) - start)
            path = None if work is None else work / f"{stem}-{start:07d}.safetensors"
            if path is not None and rows_of(path, [about]) == size:
                with opened_shard(path) as shard:
                    x, attention = shard.get_tensor("x"), shard.get_tensor("a")
                shown.skip(size)
            else:
                x, attention = _run(model, some, range(start, start + size), shown)
                if path is not None and work is not None:
                    work.mkdir(parents=True, exist_ok=True)
                    write_shard(path, {"x": x, "a": attention}, about, f"{what}: pictures {start}…")
            xs.append(x)
            attentions.append(attention)
    return Seen(np.concatenate(xs), np.concatenate(attentions))


def _run(
    model: VLM, some: Some, rows: range, shown: Progress
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    xs, attentions = [], []
    for first in range(rows.start, rows.stop, _BATCH):
        batch = range(first, min(first + _BATCH, rows.stop))
        pictures = [some.data.picture(some.indices[i]) for i in batch]
        with torch.autocast("cpu", enabled=False):
            x, attention = flat_states(model, pictures, attention=True)
        xs.append(x.astype(np.float16))
        attentions.append(attention.astype(np.float16))
        shown.advance(len(pictures))
    return np.concatenate(xs), np.concatenate(attentions)
