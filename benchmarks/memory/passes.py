"""Runs of the two models, each done once: what they make of a text is kept on the disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from projector.codec.arrays import Floats
from projector.memory.basis import text_features
from projector.models.cache import new_cache
from projector.models.frozen import padded
from projector.models.lm import LM

_BATCH = 48
_EVERY_S, _SAVED_S = 10.0, 120.0


class Kept:
    """One row of numbers for each text; rows that are known are not computed again.

    Args:
        file: keeps the rows, float16; its name says which model and what.
        make: rows of some texts, [n, d].
        what: for the progress line.
    """

    def __init__(self, file: Path, make: Callable[[Sequence[str]], Floats], what: str) -> None:
        self._file, self._make, self._what = file, make, what
        self._rows: dict[str, npt.NDArray[np.float16]] = {}
        if file.is_file():
            with np.load(file) as known:
                self._rows = dict(zip(known["names"].tolist(), known["rows"], strict=True))

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Rows of the texts, float32 [n, d], in their order."""
        missing = list(dict.fromkeys(text for text in texts if _name(text) not in self._rows))
        if missing:
            self._add(sorted(missing, key=len))
        return np.stack([self._rows[_name(text)] for text in texts]).astype(np.float32)

    def _add(self, texts: Sequence[str]) -> None:
        began = told = saved = time.monotonic()
        for at in range(0, len(texts), _BATCH):
            part = texts[at : at + _BATCH]
            for text, row in zip(part, self._make(part), strict=True):
                self._rows[_name(text)] = row.astype(np.float16)
            now = time.monotonic()
            if now - told > _EVERY_S:
                told, done = now, at + len(part)
                left = (now - began) / done * (len(texts) - done)
                print(f"memory: {self._what}: {done}/{len(texts)}, {left:.0f} s to go", flush=True)
            if now - saved > _SAVED_S:
                saved = now
                self._save()
        self._save()

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part_file = self._file.with_suffix(".part.npz")
        np.savez(part_file, names=list(self._rows), rows=np.stack(list(self._rows.values())))
        part_file.replace(self._file)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def features(small: LM) -> Callable[[Sequence[str]], Floats]:
    """The small model's features of every layer: see `text_features`.

    Returns:
        From n texts to [n, layers * 2 * width].
    """
    layers = tuple(range(small.layout.layers))

    def make(texts: Sequence[str]) -> Floats:
        states = small.states([small.tokens(text).ids for text in texts])
        return np.stack([text_features(one, layers) for one in states])

    return make


def last_states(large: LM) -> Callable[[Sequence[str]], Floats]:
    """What the large model's head reads at the last token of each prompt.

    Returns:
        From n prompts to [n, d].
    """

    def make(texts: Sequence[str]) -> Floats:
        return last_of(large, [prompt_ids(large, text) for text in texts])

    return make


def prompt_ids(large: LM, prompt: str) -> list[int]:
    """A prompt's ids after the constant prefix."""
    return [*large.prefix_ids, *large.tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def last_of(large: LM, rows: Sequence[Sequence[int]]) -> Floats:
    """The last hidden state, after the final norm, at the last of each row of ids, [n, d]."""
    with torch.inference_mode():  # causal, so no token sees the padding on the right
        state = large.run(padded(rows, large.device), new_cache())
    ends = torch.tensor([len(row) - 1 for row in rows])
    last: Floats = state[torch.arange(len(rows)), ends].float().numpy()
    return last
