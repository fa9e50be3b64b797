"""Inputs of commands: a folder of pictures or texts, and the corpus that both models made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from projector.report import tables
from protos.errors import CorpusError
from protos.process.folders import said
from protos.process.progress import note

if TYPE_CHECKING:
    from projector.commands.models import Model
    from projector.training.corpus import Corpus
    from projector.training.dataset import Dataset


def open_data(folder: Path, max_pixels: int) -> Dataset:
    """Open a folder of pictures or texts; print which files are passed over.

    Raises:
        SourceError: as `open_folder`.
    """
    from projector.training.dataset import open_folder

    data = open_folder(folder, max_pixels)
    if data.skipped:
        note(f"projector: {folder}: {len(data)} {data.unit}s; passed over: {said(data.skipped)}")
    return data


def make_corpus(
    data: Dataset, source: Model, target: Model, folder: Path, count: int | None = None
) -> Corpus:
    """Run both models over the first `count` inputs (all by default); shards made before are kept.

    Raises:
        CorpusError: the models do not both read what the folder holds, or as `collect`.
    """
    from projector.models.lm import LM
    from projector.models.vlm import VLM
    from projector.training import corpus, texts
    from projector.training.dataset import Texts

    size = min(count or len(data), len(data))
    with tables.doing(f"reading {len(data)} {data.unit}s"):
        inputs = data.digest
    if isinstance(data, Texts) and isinstance(source, LM) and isinstance(target, LM):
        return texts.collect(
            source,
            target,
            data.text,
            size,
            folder,
            inputs=inputs,
            named=lambda index: data.files[index].name,
        )
    if isinstance(source, VLM) and isinstance(target, VLM):
        return corpus.collect(source, target, data.picture, size, folder, inputs=inputs)
    raise CorpusError(f"{data.folder} holds {data.unit}s, which these two models do not both read")


def open_corpus(data: Dataset, source: Model, target: Model, folder: Path) -> Corpus:
    """The pairs that `projector corpus` made of these inputs.

    Raises:
        CorpusError: there is no corpus, or it is of other inputs or models.
    """
    return make_corpus(data, source, target, folder, corpus_size(folder, len(data)))


def corpus_size(folder: Path, most: int | None = None) -> int:
    """Number of pictures or texts in a corpus, as its last shard says; at most `most`.

    Raises:
        CorpusError: there is no shard, or the last cannot be read.
    """
    from projector.training.corpus import rows_of

    shards = list(folder.glob("*.safetensors"))
    if not shards:
        raise CorpusError(f"{folder} holds no shard: make them with `projector corpus` first")
    last = max(shards)
    try:
        size = int(last.stem) + rows_of(last)
        return size if most is None else min(size, most)
    except ValueError as error:
        raise CorpusError(f"{last} is no shard of a corpus: remove it") from error
