"""A text-only language model: it turns texts into caches, and answers questions from a cache.

A text's cache never depends on the question: the question follows on its own line and is tokenized
separately. No chat template is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from projector.models import cache as kv
from projector.models import checkpoint, self_check
from projector.models.cache import LayerCache
from projector.models.decoder import decoder_of
from projector.models.frozen import (
    FrozenModel,
    Generation,
    eos_ids,
    padded,
)
from projector.models.layout import layout_of
from projector.models.output import Output
from projector.models.supported import refuse_unsupported
from projector.models.tokens import CHARACTERS_PER_TOKEN, Reader, Tokens
from projector.models.witness import Witness
from protos.errors import (
    ContextError,
    QuestionError,
    QuestionTooLongError,
    UnsupportedModelError,
)
from protos.state import KVState

TEXT_TOKENS = 128
_MORE_THAN_TEXT = ("vision_config", "audio_config", "vq_config")


@dataclass
class LM(FrozenModel):
    """A frozen local causal language model. Build it with `LM.load`."""

    reader: Reader = None  # type: ignore[assignment]  # `of` sets it; the base has defaults

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        text_tokens: int = TEXT_TOKENS,
    ) -> LM:
        """Load a local checkpoint of any supported causal class. Never goes online.

        Args:
            path: a folder written by `save_pretrained` (safetensors weights, fast tokenizer).
            device: a torch device.
            dtype: `float32`, `bfloat16` or `float16`.
            text_tokens: tokens of the longest text accepted; part of the layout.

        Raises:
            ModelError: the folder is not a usable checkpoint.
            UnsupportedModelError: a cache layout cannot describe the model; the error names why.
            ContextError: such a text would not fit the model's windows.
        """
        folder = Path(path)
        _refuse(checkpoint.read_config(folder))
        tokenizer = checkpoint.read_tokenizer(folder)
        model = checkpoint.read_weights(folder, AutoModelForCausalLM, dtype, device)
        with checkpoint.first_runs(model, folder):
            return cls.of(model, tokenizer, folder, text_tokens, known=True)

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        path: str | Path,
        text_tokens: int = TEXT_TOKENS,
        known: bool = False,
    ) -> LM:
        """Wrap a model and a tokenizer already in memory; `path` is where they were saved.

        Args:
            model: in evaluation mode.
            tokenizer: of the model.
            path: folder of the checkpoint.
            text_tokens: as in `load`.
            known: whether model and tokenizer are exactly what the folder holds; then an earlier
                self-check of that folder counts.

        Raises:
            ModelError, UnsupportedModelError, ContextError: as `load`.
        """
        _refuse(model.config)
        reader = Reader.of(tokenizer, path, text_tokens)
        bare, whole = (
            list(tokenizer("a", add_special_tokens=special)["input_ids"])
            for special in (False, True)
        )
        before = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        lm = cls(
            model=model,
            tokenizer=tokenizer,
            path=Path(path),
            layout=layout_of(model, path, (1, text_tokens), {"before": whole[:before]}),
            prefix_ids=whole[:before],
            eos_ids=eos_ids(model, tokenizer),
            decoder=decoder_of(model),
            _output=Output(model),
            reader=reader,
        )
        text = model.config.get_text_config(decoder=True)
        longest = before + text_tokens + lm.max_question_tokens
        lm.layout.require_window(longest, "the longest text with a question")
        if longest > int(getattr(text, "max_position_embeddings", longest)):
            raise ContextError(
                f"texts of {text_tokens} tokens with a question exceed the "
                f"{text.max_position_embeddings} positions of {lm.layout.model_id}"
            )
        lm._take_over_attention()
        lm._check_cache(bare)
        lm.checked = self_check.require(lm, lm.witnesses, known)
        return lm

    def _check_cache(self, ids: list[int]) -> None:
        """Run a text; refuse a model whose cache is not as the layout says."""
        layout = self.layout
        layers = self.context([ids])
        self._check_finite(layers)
        want = (1, layout.kv_heads, len(self.prefix_ids) + len(ids), layout.head_dim)
        if len(layers) != layout.layers or any(tuple(part.shape) != want for part in layers[0]):
            raise UnsupportedModelError(
                f"{layout.model_id} caches {len(layers)} layers of {tuple(layers[0][0].shape)}, "
                f"the layout says {layout.layers} of {want}"
            )
        self._check_rotation([*self.prefix_ids, *ids, *range(4, 12)])

    def witnesses(self) -> Iterator[Witness]:
        """Random token rows of several lengths, with random questions.

        Raises:
            SelfCheckError: the tokenizer turns a text into other ids than this class does.
        """
        draw = np.random.default_rng(0)
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        words = [i for i in range(len(self.tokenizer)) if i not in special]
        questions = [draw.choice(words, size).tolist() for size in (5, 9)]
        for index, size in enumerate((24, 7, 40)):
            row = draw.choice(words, min(size, self.layout.tokens)).tolist()
            state = self.states([row])
            keys, values = kv.from_states(state, self.layout, self.positions[: len(row)])
            layers = self.scene_cache(keys, values)
            for number, question in enumerate(questions):
                ids = torch.tensor([[*self.prefix_ids, *row, *question]])
                yield Witness(
                    f"question {number} about text {index}",
                    f"text {index}",
                    {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                    layers,
                    question,
                    partial(self._last_read, ids),
                )

    def _last_read(self, ids: Tensor) -> Tensor:
        read = Generation(self, kv.new_cache(), 0, [ids.shape[1]])
        return read.forward(ids.to(self.device))[:, -1]

    # -- texts -----------------------------------------------------------------------------------

    def tokens(self, text: str) -> Tokens:
        """A text as the model reads it.

        Raises:
            ContextError: it is empty, holds one of the tokenizer's reserved tokens, or has more
                tokens than the layout allows.
        """
        return self.reader.read(text)

    def question_ids(self, text: str) -> list[int]:
        """The ids that follow the text: the question on a line of its own.

        Raises:
            QuestionError: it is blank, or holds one of the tokenizer's reserved tokens.
            QuestionTooLongError: more than `max_question_tokens`.
        """
        if not text.strip():
            raise QuestionError("the question is empty")
        reserved = self.reader.held(text)
        if reserved is not None:
            raise QuestionError(f"the question holds '{reserved}', a token reserved by the model")
        most = self.max_question_tokens
        ids: list[int] = []
        if len(text) <= CHARACTERS_PER_TOKEN * most:
            ids = list(self.tokenizer("\n" + text, add_special_tokens=False)["input_ids"])
        if not 0 < len(ids) <= most:
            raise QuestionTooLongError(
                f"the question of {len(text)} characters does not fit {most} tokens"
            )
        return ids

    def answer_ids(self, text: str) -> list[int]:
        """The ids of an answer, as training uses them: nothing follows it."""
        return list(self.tokenizer(" " + text, add_special_tokens=False)["input_ids"])

    # -- the sending side ------------------------------------------------------------------------

    def context(self, rows: Sequence[Sequence[int]]) -> list[LayerCache]:
        """The cache of some texts after the constant prefix, as the model computed it.

        Args:
            rows: ids from `tokens`, of any lengths.

        Returns:
            Per layer keys (rotated) and values `[B, kv_heads, prefix + longest, head_dim]`. Past a
            row's own tokens they are padding.
        """
        ids = [[*self.prefix_ids, *row] for row in rows]
        cache = kv.new_cache()
        with torch.inference_mode():  # causal, so no token sees the padding on the right
            self.run(padded(ids, self.device), cache)
        return kv.read_cache(cache)

    def states(self, rows: Sequence[Sequence[int]]) -> list[KVState]:
        """The texts' own tokens with RoPE removed, one state per row, without attention."""
        layers = self.context(rows)
        start = len(self.prefix_ids)
        keys, values = (torch.stack(part)[:, :, :, start:] for part in zip(*layers, strict=True))
        made = []
        for index, row in enumerate(rows):
            size = len(row)
            with torch.inference_mode():
                made += kv.to_states(
                    keys[:, index : index + 1, :, :size],
                    values[:, index : index + 1, :, :size],
                    self.layout,
                    self.positions[:size],
                    torch.full((1, size), 1 / size),
                )
        return made

    def text_state(self, text: str) -> KVState:
        """The cache of a text, RoPE removed; a memory makes its keys from it.

        Raises:
            ContextError: as `tokens`.
        """
        return self.states([self.tokens(text).ids])[0]

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Positions of the longest text's tokens, `[N]`."""
        start = len(self.prefix_ids)
        return np.arange(start, start + self.layout.tokens, dtype=np.int64)

    # -- the answering side ----------------------------------------------------------------------

    def answer_texts(
        self,
        rows: Sequence[Sequence[int]],
        questions: Sequence[Sequence[int]],
        max_new_tokens: int = 16,
    ) -> list[list[int]]:
        """Greedy answers of the model when it reads the texts itself, in one forward pass.

        Args:
            rows: ids from `tokens`, one text per row.
            questions: ids from `question_ids`, one per row.
            max_new_tokens: as `answer`.
        """
        ids = [
            [*self.prefix_ids, *row, *question]
            for row, question in zip(rows, questions, strict=True)
        ]
        longest = max(map(len, ids))
        self.layout.require_window(longest + max_new_tokens, "a text with its question")
        with torch.inference_mode():
            generation = Generation(self, kv.new_cache(), 0, [len(row) for row in ids])
            hidden = generation.forward(padded(ids, self.device))
            return generation.run(hidden, max_new_tokens, None)


def reads_only_texts(path: str | Path) -> bool:
    """Whether a checkpoint is a text-only language model, for `LM` and not for `VLM`.

    Raises:
        ModelError: the folder is not a checkpoint.
        UnsupportedModelError: transformers does not know the model, or knows it as neither kind.
    """
    config = checkpoint.read_config(Path(path))
    if checkpoint.sees_pictures(config):
        return False
    if not checkpoint.reads_texts(config):
        raise UnsupportedModelError(
            f"{path}: '{config.model_type}' is neither an image-text-to-text nor a causal language "
            "model to transformers; use a model of one of these kinds"
        )
    return True


def read_tokenizer(path: str | Path, text_tokens: int = TEXT_TOKENS) -> Reader:
    """A checkpoint's tokenizer without its model.

    Raises:
        ModelError: the folder holds no fast tokenizer.
    """
    return Reader.of(checkpoint.read_tokenizer(Path(path)), path, text_tokens)


def _refuse(config: Any) -> None:
    kind = config.model_type
    if checkpoint.sees_pictures(config):
        raise UnsupportedModelError(
            f"'{kind}' reads more than text: load it as an image-text-to-text model"
        )
    refuse_unsupported(config, windows=True)
    if not checkpoint.reads_texts(config):
        raise UnsupportedModelError(f"transformers has no causal class for '{kind}'")
    more = {name for name in _MORE_THAN_TEXT if getattr(config, name, None) is not None}
    if config is not config.get_text_config(decoder=True) or more:
        raise UnsupportedModelError(
            f"'{kind}' reads more than text, and transformers has no image-text-to-text class for "
            "it: use another model"
        )
