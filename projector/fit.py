"""From a corpus to a fitted map: splits by picture, moments, held-out answers, the untrained edge.

Knows corpora, families and models. Does not know: files, flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from projector.corpus import Corpus
from projector.dataset import Dataset
from projector.families.base import Map, grid_weights
from projector.families.ridge import Ridge
from projector.lm import LM
from projector.moments import Moments
from projector.ragged import present
from projector.train import Trainer
from projector.vlm import VLM
from protos.errors import CorpusError
from protos.layout import KVLayout

_CHUNK = 64
_BATCH = 32


def split(corpus: Corpus, share: float) -> tuple[Corpus, Corpus]:
    """The first pictures to train on, the last `share` of them held out; never by token.

    Raises:
        CorpusError: nothing would be left to train on.
    """
    held = int(round(len(corpus) * share))
    first = len(corpus) - held
    if first < 1:
        raise CorpusError(f"{len(corpus)} pictures, {held} of them held out: none to train on")
    return corpus.part(slice(0, first)), corpus.part(slice(first, None))


def chunks(
    corpus: Corpus, source: KVLayout, target: KVLayout
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]]:
    """Pairs of states, the source's interpolated to the target's token grid where they differ."""
    weights = grid_weights(source.grid, target.grid)
    between = None if weights is None else weights.numpy()
    for begin in range(0, len(corpus), _CHUNK):
        x = corpus.x[begin : begin + _CHUNK].astype(np.float32)
        y = corpus.y[begin : begin + _CHUNK]
        if corpus.ragged:
            there = present(x)
            x, y = x[there], y[there]
        yield (x if between is None else between @ x), y


def moments_of(
    corpus: Corpus, source: VLM | LM, target: VLM | LM, *, target_gram: bool = True
) -> Moments:
    """Moments of a corpus, in one pass."""
    return Moments.of(chunks(corpus, source.layout, target.layout), target_gram=target_gram)


def held_out_accuracy(trainer: Trainer[Any], held: Corpus, data: Dataset, first: int) -> float:
    """Answers on held-out pictures, which are the dataset's from `first` on."""

    def questions(index: int, count: int, seed: int) -> Any:
        return data.questions(first + index, count, seed)

    return trainer.accuracy(held, questions, lambda x, _y: trainer.mapped_layers(x))


def untrained_edge_states(
    model: Path,
    made: Map,
    corpus: Corpus,
    picture: Callable[[int], Image.Image],
    seed: int = 2,
) -> npt.NDArray[np.float32]:
    """Control: target states that the best linear map makes of a *random* edge model's cache.

    Half of the pictures are for the fit and predicted by a fit to the other half, and the other way
    round, so that none is predicted from itself.

    Args:
        model: the edge model's checkpoint; only its configuration is used.
        made: the map judged, for its layouts.
        corpus: held-out pairs, whose target states are the ones to predict.
        picture: gives picture i of the corpus.
        seed: of the random weights.

    Returns:
        `[n, M, d_r]`.
    """
    random = untrained(model, seed)
    xs = [
        flat_states(random, [picture(i) for i in range(b, min(b + _BATCH, len(corpus)))], False)[0]
        for b in range(0, len(corpus), _BATCH)
    ]
    x = np.concatenate(xs)
    weights = grid_weights(made.source.grid, made.target.grid)
    if weights is not None:
        x = weights.numpy() @ x
    out = np.empty(corpus.y.shape, dtype=np.float32)
    even = np.arange(len(corpus)) % 2 == 0
    for train, test in ((even, ~even), (~even, even)):
        moments = Moments.of([(x[train], corpus.y[train])])
        fitted = Ridge(weight=1e-2).build(made.source, made.target, moments)
        with torch.no_grad():
            z = fitted.normal(torch.from_numpy(x[test]))
            out[test] = (fitted.up(z) * fitted.y_scale + fitted.y_mean).numpy()
    return out


def untrained(model: Path, seed: int) -> VLM:
    """A checkpoint's architecture with random weights, its own processor."""
    from transformers import AutoModelForImageTextToText

    trained = VLM.load(model)
    torch.manual_seed(seed)
    fresh = AutoModelForImageTextToText.from_config(trained.model.config, dtype=torch.float32)
    trained.model.load_state_dict(fresh.state_dict())
    return trained


def edge_answers(
    source: VLM, data: Dataset, asked: Sequence[tuple[int, str]], most: int = 8
) -> list[str]:
    """The edge model's own answers.

    Args:
        source: the edge model.
        data: where its pictures are.
        asked: (picture, question) pairs.
        most: longest answer, in tokens.
    """
    answers = []
    for begin in range(0, len(asked), _BATCH):
        rows = asked[begin : begin + _BATCH]
        pictures = [data.picture(index) for index, _ in rows]
        ids = [source.question_ids(text) for _, text in rows]
        answers += [source.text(row) for row in source.answer_pictures(pictures, ids, most)]
    return answers
