"""Paired caches of the same texts, token by token across two tokenizers.

Every row pairs a token of the target with the source's token that covers its end, so that both
sides have the same number. `projector.training.corpus` does the same for pictures, with the same
names of shards and the same errors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from projector.models.foreign import foreign, plain_file
from projector.models.lm import LM
from projector.models.tokens import Tokens, align, fresh
from projector.training.corpus import REMAKE, Corpus, made_of, rows_of, write_shard
from projector.training.ragged import Ragged
from protos.errors import ContextError, CorpusError
from protos.process.progress import Progress

SHARD_TEXTS = 256
_BATCH = 16

Text = Callable[[int], str]
"""Gives the text of an index."""


def paired_tokens(source: LM, target: LM, text: str) -> tuple[Tokens, Tokens]:
    """A text's tokens in both models.

    Raises:
        ContextError: one of the models cannot read it.
    """
    return source.tokens(text), target.tokens(text)


def aligned_states(source: LM, texts: list[tuple[Tokens, Tokens]]) -> list[npt.NDArray[np.float32]]:
    """Per text, the source's flat state for each of the target's tokens, `[target tokens, d_s]`."""
    states = source.states([mine.ids for mine, _ in texts])
    return [
        state.flat()[align(mine, theirs)]
        for state, (mine, theirs) in zip(states, texts, strict=True)
    ]


def fresh_of(source: LM, target: LM, text: Text, count: int) -> list[npt.NDArray[np.bool_]]:
    """Which of the target's tokens travel, `[target tokens]` for each of the first texts."""
    pairs = (paired_tokens(source, target, text(index)) for index in range(count))
    return [fresh(align(mine, theirs)) for mine, theirs in pairs]


def collect(
    source: LM,
    target: LM,
    text: Text,
    count: int,
    folder: Path,
    what: str = "corpus",
    inputs: str = "",
    named: Callable[[int], str] = str,
) -> Corpus:
    """Runs both models over texts 0 to count - 1; resumes where an earlier run stopped.

    Args:
        source: the edge model.
        target: the cloud model.
        text: gives text i.
        count: number of texts.
        folder: folder of the shards.
        what: the name shown on the progress bar.
        inputs: digest of the texts, so that shards of other texts are not taken for these.
        named: gives a text's name for messages; its number by default.

    Raises:
        ContextError: a text that one of the models cannot read.
        CorpusError: no texts; or the folder holds shards of other models or other texts, damaged
            ones, or states that are not finite.
        DiskFullError: there was no room for a shard; the finished ones stay.
    """
    if count < 1:
        raise CorpusError("a corpus of no texts")
    if source.layout.grid != target.layout.grid:
        raise CorpusError(
            f"the source takes {source.layout.tokens} tokens of a text, the target "
            f"{target.layout.tokens}: load both for the same"
        )
    folder.mkdir(parents=True, exist_ok=True)
    pairs = made_of(source.layout, target.layout, inputs)
    shards: list[Any] = []
    rows: list[npt.NDArray[np.int64]] = []
    with Progress(what, count, "text") as shown:
        for start in range(0, count, SHARD_TEXTS):
            path = folder / f"{start:07d}.safetensors"
            size = min(SHARD_TEXTS, count - start)
            if rows_of(path, pairs) < size:
                some = range(start, start + size)
                _make(source, target, text, some, pairs[0], path, named, shown.advance)
            else:
                shown.skip(size)
            shard, ends = _open(path, source, target, size)
            begins = np.concatenate([[0], ends[:-1]])
            rows.append(np.stack([np.full(size, len(shards)), begins, ends], axis=1))
            shards.append(shard)
    place = np.concatenate(rows)
    x, y = (
        Ragged([shard.get_slice(name) for shard in shards], place, layout.state_dim)
        for name, layout in (("x", source.layout), ("y", target.layout))
    )
    lengths = x.lengths
    there = np.arange(lengths.max()) < lengths[:, None]
    return Corpus(x, y, (there / lengths[:, None]).astype(np.float16))


def _make(
    source: LM,
    target: LM,
    text: Text,
    indices: range,
    pair: dict[str, str],
    path: Path,
    named: Callable[[int], str],
    made: Callable[[int], None],
) -> None:
    texts = []
    for index in indices:
        try:
            texts.append(paired_tokens(source, target, text(index)))
        except ContextError as error:
            raise ContextError(f"text {named(index)}: {error.message}") from error
    # Batch texts of similar length: a batch is padded to its longest.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][1].ids))
    xs, ys = ([np.empty(0, np.float16)] * len(texts) for _ in range(2))
    for first in range(0, len(texts), _BATCH):
        chosen = order[first : first + _BATCH]
        some = [texts[i] for i in chosen]
        states = target.states([theirs.ids for _, theirs in some])
        for i, x, y in zip(chosen, aligned_states(source, some), states, strict=True):
            xs[i], ys[i] = x.astype(np.float16), y.flat().astype(np.float16)
        made(len(chosen))
    ends = np.cumsum([len(y) for y in ys], dtype=np.int64)
    arrays: dict[str, npt.NDArray[Any]] = {
        "x": np.concatenate(xs),
        "y": np.concatenate(ys),
        "ends": ends,
    }
    write_shard(path, arrays, pair, f"texts {indices.start} to {indices.stop - 1}")


def _open(path: Path, source: LM, target: LM, size: int) -> tuple[Any, npt.NDArray[np.int64]]:
    plain_file(path, REMAKE, CorpusError)
    unreadable = foreign(f"{path} is not a readable shard", REMAKE, CorpusError)
    with unreadable, contextlib.ExitStack() as opened:
        shard = opened.enter_context(safe_open(str(path), "np"))
        ends = shard.get_tensor("ends")
        slices = [shard.get_slice(name) for name in ("x", "y")]
        shapes = [(*part.get_shape(), part.get_dtype()) for part in slices]
        opened.pop_all()  # the slices read from it until they are dropped
    if ends.ndim != 1 or ends.dtype.kind != "i":
        raise CorpusError(f"{path}: where its texts end is no list of whole numbers; {REMAKE}")
    tokens = int(ends[-1]) if len(ends) else 0
    want = [(tokens, layout.state_dim, "F16") for layout in (source.layout, target.layout)]
    if len(ends) != size or (np.diff(ends, prepend=0) < 1).any() or shapes != want:
        raise CorpusError(
            f"{path} holds {len(ends)} texts with states {shapes}, expected {size} with {want}; "
            f"{REMAKE}"
        )
    return shard, ends
