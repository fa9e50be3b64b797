"""Steps from a corpus to a fitted map: split, moments, held-out answers, the untrained edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from projector.maps.base import Map, grid_weights
from projector.maps.moments import Moments
from projector.maps.ridge import Ridge
from projector.models.lm import LM
from projector.models.vlm import VLM
from projector.training.corpus import Corpus, flat_states
from projector.training.dataset import Dataset, Texts
from projector.training.ragged import present
from projector.training.texts import aligned_states, paired_tokens
from projector.training.train import Trainer
from protos.errors import CorpusError
from protos.layout import KVLayout

_CHUNK, _CHUNK_TOKENS = 64, 8192
_BATCH = 32


def split(corpus: Corpus, share: float) -> tuple[Corpus, Corpus]:
    """The first pictures to train on, the last `share` of them held out; never by token.

    Raises:
        CorpusError: nothing would be left to train on.
    """
    held = int(round(len(corpus) * share))
    first = len(corpus) - held
    if first < 1:
        raise CorpusError(f"{len(corpus)} inputs, {held} of them held out: none to train on")
    return corpus.part(slice(0, first)), corpus.part(slice(first, None))


def chunks(
    corpus: Corpus,
    source: KVLayout,
    target: KVLayout,
    weights: npt.NDArray[np.float32] | None = None,
) -> Iterator[tuple[npt.NDArray[np.floating], ...]]:
    """Pairs of states, the source's interpolated to the target's token grid where they differ.

    Args:
        corpus: pairs.
        source: the edge model's layout.
        target: the cloud model's layout.
        weights: weights of the target's tokens, `[n, M]`; if given, they come with the pairs.
    """
    across = grid_weights(source.grid, target.grid)
    between = None if across is None else across.numpy()
    for some in _slices(corpus):
        x = corpus.x[some].astype(np.float32)
        y = corpus.y[some]
        each = None if weights is None else weights[some, : y.shape[1]]
        if corpus.ragged:
            there = present(x)
            x, y, each = x[there], y[there], None if each is None else each[there]
        x = x if between is None else between @ x
        yield (x, y) if each is None else (x, y, each)


def _slices(corpus: Corpus) -> list[slice]:
    """Rows of a corpus that are taken together; for texts, as many as fit 8,192 padded tokens."""
    if not corpus.ragged:
        return [slice(begin, begin + _CHUNK) for begin in range(0, len(corpus), _CHUNK)]
    made, begin, longest = [], 0, 0
    for row, length in enumerate(corpus.x.lengths.tolist()):
        longest = max(longest, length)
        if row > begin and (row + 1 - begin) * longest > _CHUNK_TOKENS:
            made.append(slice(begin, row))
            begin, longest = row, length
    return [*made, slice(begin, len(corpus))]


def moments_of(
    corpus: Corpus,
    source: VLM | LM,
    target: VLM | LM,
    *,
    target_gram: bool = True,
    weights: npt.NDArray[np.float32] | None = None,
) -> Moments:
    """Moments of a corpus, in one pass; its tokens are weighted if weights `[n, M]` are given."""
    pairs = chunks(corpus, source.layout, target.layout, weights)
    return Moments.of(pairs, target_gram=target_gram)


def held_out_accuracy(trainer: Trainer[Any], held: Corpus, data: Dataset, first: int) -> float:
    """Answers on held-out pictures, which are the dataset's from `first` on."""

    def questions(index: int, count: int, seed: int) -> Any:
        return data.questions(first + index, count, seed)

    return trainer.accuracy(held, questions, lambda x, _y: trainer.mapped_layers(x))


def held_out_controls(
    trainer: Trainer[Any], held: Corpus, data: Dataset, first: int
) -> dict[str, float]:
    """The controls of `held_out_accuracy`: `native` (the target's own cache) and `blind`."""

    def questions(index: int, count: int, seed: int) -> Any:
        return data.questions(first + index, count, seed)

    return {
        "native": trainer.accuracy(held, questions, lambda _x, y: trainer.native_layers(y)),
        "blind": trainer.accuracy(held, questions, lambda x, _y: trainer.blind_layers(len(x))),
    }


def untrained_edge_states(
    model: Path, made: Map, corpus: Corpus, data: Dataset, target: VLM | LM, seed: int = 2
) -> npt.NDArray[np.float32]:
    """Control: target states that the best linear map makes from a *random* edge model's cache.

    Each half of the pictures is predicted by a fit to the other half, so that none is predicted
    from itself.

    Args:
        model: the edge model's checkpoint; only its configuration is used.
        made: the map judged, for its layouts.
        corpus: held-out pairs; their target states are predicted.
        data: their pictures or texts, from the first on.
        target: the cloud model; texts are aligned to its tokens.
        seed: seed of the random weights.

    Returns:
        `[n, M, d_r]`, NaN past a text's end.
    """
    edge = untrained(model, seed, made.source.tokens if isinstance(data, Texts) else None)
    x = _edge_states(edge, target, data, len(corpus))
    weights = grid_weights(made.source.grid, made.target.grid)
    if weights is not None:
        x = weights.numpy() @ x
    y = corpus.y[:]
    out = np.full(y.shape, np.nan, dtype=np.float32)
    even = np.arange(len(corpus)) % 2 == 0
    for train, test in ((even, ~even), (~even, even)):
        known, asked = present(x[train]), present(x[test])
        moments = Moments.of([(x[train][known], y[train][known])])
        fitted = Ridge(weight=1e-2).build(made.source, made.target, moments)
        fitted.take_key_norm_of(made)
        with torch.no_grad():
            z = fitted.normal(torch.from_numpy(x[test][asked]))
            found = fitted.states(fitted.up(z)).numpy()
        out[np.flatnonzero(test)[:, None], np.arange(out.shape[1])] = _spread(found, asked)
    return out


def _spread(
    tokens: npt.NDArray[np.float32], there: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Tokens `[T, d]` put in their places, `[B, N, d]`; NaN elsewhere."""
    out = np.full((*there.shape, tokens.shape[-1]), np.nan, dtype=np.float32)
    out[there] = tokens
    return out


def _edge_states(
    edge: VLM | LM, target: VLM | LM, data: Dataset, count: int
) -> npt.NDArray[np.float32]:
    """States of the first inputs `[n, N, d_s]`, one per token of the target for texts."""
    batches = [range(b, min(b + _BATCH, count)) for b in range(0, count, _BATCH)]
    if isinstance(edge, VLM):
        pictures = ([data.picture(i) for i in batch] for batch in batches)
        return np.concatenate([flat_states(edge, some, False)[0] for some in pictures])
    if not (isinstance(target, LM) and isinstance(data, Texts)):
        raise CorpusError("texts need two language models and a folder of texts")
    rows: list[npt.NDArray[np.float32]] = []
    for batch in batches:
        rows += aligned_states(edge, [paired_tokens(edge, target, data.text(i)) for i in batch])
    lengths = np.array([len(row) for row in rows])
    return _spread(np.concatenate(rows), np.arange(lengths.max()) < lengths[:, None])


def untrained(model: Path, seed: int, text_tokens: int | None) -> VLM | LM:
    """A checkpoint's architecture with random weights, its own processor.

    Args:
        model: the checkpoint.
        seed: seed of the weights.
        text_tokens: the longest text, for a language model; None for a vision-language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    def random(trained: Any, cls: Any) -> Any:
        torch.manual_seed(seed)
        fresh = cls.from_config(trained.config, dtype=torch.float32)
        trained.load_state_dict(fresh.state_dict())
        return trained

    if text_tokens is None:
        vlm = VLM.load(model)
        drawn = random(vlm.model, AutoModelForImageTextToText)
        return VLM.of(drawn, vlm.processor, model)
    lm = LM.load(model, text_tokens=text_tokens)
    return LM.of(random(lm.model, AutoModelForCausalLM), lm.tokenizer, model, text_tokens)


def edge_answers(
    source: VLM | LM,
    data: Dataset,
    asked: Sequence[tuple[int, str]],
    most: int = 8,
    told: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """The edge model's own answers.

    Args:
        source: the edge model.
        data: where its pictures or texts are.
        asked: (picture, question) pairs.
        most: longest answer, in tokens.
        told: called with how many more are answered.
    """
    answers = []
    for begin in range(0, len(asked), _BATCH):
        rows = asked[begin : begin + _BATCH]
        ids = [source.question_ids(text) for _, text in rows]
        if isinstance(source, VLM):
            pictures = [data.picture(index) for index, _ in rows]
            found = source.answer_pictures(pictures, ids, most)
        elif isinstance(data, Texts):
            texts = [source.tokens(data.text(index)).ids for index, _ in rows]
            found = source.answer_texts(texts, ids, most)
        else:
            raise CorpusError("a language model needs a folder of texts")
        answers += [source.text(row) for row in found]
        told(len(rows))
    return answers
